-- Reads one stream, newest event first.
--
--   $1 stream   text
--   $2 after    bigint       exclusive; 0 reads to the start
--   $3 up_to    bigint       inclusive
--   $4 until    timestamptz  inclusive; null for no bound
--   $5 limit    bigint
--
-- Returns the columns of an envelope (framework/src/store/read.rs).
select position, version, event_id, correlation_id, causation_id, command_id, recorded_at, schema_version, stream,
  event_type, actor, traceparent, payload
from annals.events
where stream = $1 and version > $2 and version <= $3 and ($4::timestamptz is null or recorded_at <= $4)
order by version desc
limit $5
