-- Reads what led to an event, the first cause first, and the event.
--
--   $1 event_id  uuid
--   $2 limit     integer  how far back it is looked
--
-- Returns (stream text, event_type text), the event itself last.
with recursive cause as (
  select e.causation_id, e.stream, e.event_type, 1 as depth from annals.events e where e.event_id = $1
  union all
  select e.causation_id, e.stream, e.event_type, cause.depth + 1
  from cause join annals.events e on e.event_id = cause.causation_id
  where cause.depth < $2
)
select cause.stream, cause.event_type from cause order by cause.depth desc
