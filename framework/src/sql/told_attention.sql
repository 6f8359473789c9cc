-- Notes that somebody was told that an instance is stuck.
--
--   $1 stream   text
--   $2 version  bigint  of the stream, when it was
update annals.sagas set told_at = clock_timestamp(), telling_until = null where stream = $1 and version = $2
