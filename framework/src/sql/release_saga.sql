-- Gives up an instance of a saga that this process runs, if nothing has happened to it since.
--
--   $1 stream      text
--   $2 process_id  uuid
--   $3 version     bigint       of the stream, as this process knows it
--   $4 due_at      timestamptz  when it is to be looked at again
--   $5 waits_for   text         whom it would call
--   $6 state       text         where it stands, as this build reads its stream: another may have read it otherwise
--   $7 step        text
--   $8 reason      text
update annals.sagas
set owner = null, due_at = $4, waits_for = $5, interrupted = false, state = $6, step = $7, reason = $8,
  told_at = case when state = $6 then told_at end
where stream = $1 and owner = $2 and version = $3
