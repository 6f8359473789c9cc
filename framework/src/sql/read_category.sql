-- Reads all streams of a category, one after the other, each in the order of its versions.
--
--   $1 stream   text    behind this one, and behind the version $2 in it
--   $2 version  bigint
--   $3 end      text    before this one
--   $4 up_to    bigint  position, inclusive; never above the safe position
--   $5 limit    bigint
--
-- Returns the columns of an envelope (framework/src/store/read.rs).
select position, version, event_id, correlation_id, causation_id, command_id, recorded_at, schema_version, stream,
  event_type, actor, traceparent, payload
from annals.events
where (stream, version) > ($1, $2) and stream < $3 and position <= $4
order by stream, version
limit $5
