-- Reads what led to an event, the first cause first, and the event.
--
--   $1 causation_id    uuid     the event's
--   $2 limit           integer  how far back it is looked
--   $3 correlation_id  uuid     the event's
--   $4 stream          text     the event's
--   $5 event_type      text     the event's
--
-- Returns (stream text, event_type text), the event itself last.
--
-- What led to an event mostly has its correlation, by which it is found at once. One that is not among a thousand of these is looked
-- up by its id: of what was written lately that index knows nothing yet, so it is dear.
with recursive cause as (
  select $1::uuid as causation_id, $3::uuid as correlation_id, $4::text collate "C" as stream, $5::text collate "C" as event_type, 1 as depth
  union all
  select e.causation_id, e.correlation_id, e.stream, e.event_type, cause.depth + 1
  from cause cross join lateral (
    select f.* from (
      select n.causation_id, n.correlation_id, n.stream, n.event_type
      from (select * from annals.events c where c.correlation_id = cause.correlation_id limit 1000) n
      where n.event_id = cause.causation_id
      union all
      select b.causation_id, b.correlation_id, b.stream, b.event_type
      from annals.events b where b.event_id = cause.causation_id
    ) f limit 1) e
  where cause.depth < $2 and cause.causation_id is not null
)
select cause.stream, cause.event_type from cause order by cause.depth desc
