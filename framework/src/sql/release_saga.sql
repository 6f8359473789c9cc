-- Gives up an instance of a saga that this process runs, if nothing has happened to it since.
--
--   $1 stream      text
--   $2 process_id  uuid
--   $3 version     bigint       of the stream, as this process knows it
--   $4 due_at      timestamptz  when it is to be looked at again
--   $5 waits_for   text         whom it would call
update annals.sagas
set owner = null, due_at = $4, waits_for = $5, interrupted = false
where stream = $1 and owner = $2 and version = $3
