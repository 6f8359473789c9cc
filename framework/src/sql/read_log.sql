-- Reads the log of all streams in position order.
--
--   $1 after      bigint   exclusive
--   $2 up_to      bigint   inclusive; never above the safe position
--   $3 types      text[]   event types; null for all
--   $4 categories text[]   stream categories; null for all
--   $5 limit      bigint
--   $6 skipped    text[]   event types to leave out; null for none
--
-- Returns the columns of an envelope (framework/src/store/read.rs).
select position, version, event_id, correlation_id, causation_id, command_id, recorded_at, schema_version, stream,
  event_type, actor, traceparent, payload
from annals.events
where position > $1 and position <= $2
  and ($3::text[] is null or event_type = any ($3))
  and ($4::text[] is null or split_part(stream, '-', 1) = any ($4))
  and ($6::text[] is null or event_type <> all ($6))
order by position
limit $5
