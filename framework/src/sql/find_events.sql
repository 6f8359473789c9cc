-- Finds events by id: for each id the summaries of all page ranges are looked at, and the ranges that may hold it.
--
--   $1 event_id  uuid[]
--
-- Returns the columns of an envelope (framework/src/store/read.rs), in position order.
select position, version, event_id, correlation_id, causation_id, command_id, recorded_at, schema_version, stream,
  event_type, actor, traceparent, payload
from annals.events
where event_id = any ($1)
order by position
