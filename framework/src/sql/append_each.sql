-- Appends one event to each of several streams: append_events.sql for appends of one event that record no command id.
--
--   one element a stream, no stream twice:
--   $1  stream          text[]
--   $2  expected        bigint[]   the version that the writer saw; negative: any
--   $3  correlation_id  uuid[]
--   $4  causation_id    uuid[]
--   $5  command_id      uuid[]
--   $6  actor           text[]
--   $7  traceparent     text[]
--   $8  event_id        uuid[]
--   $9  event_type      text[]
--   $10 schema_version  smallint[]
--   $11 payload         text[]
--
-- Returns one row an element, in order: (head bigint, position bigint, known boolean), as append_events.sql does.
with entry as materialized (
  select e.*,
    coalesce((select v.version from annals.events v where v.stream = e.stream order by v.version desc limit 1), 0) as head
  from unnest($1::text[], $2::bigint[], $3::uuid[], $4::uuid[], $5::uuid[], $6::text[], $7::text[], $8::uuid[], $9::text[],
         $10::smallint[], $11::text[])
       with ordinality as e(stream, expected, correlation_id, causation_id, command_id, actor, traceparent, event_id,
         event_type, schema_version, payload, nth)
),
inserted as (
  insert into annals.events (version, event_id, correlation_id, causation_id, command_id, schema_version, stream,
    event_type, actor, traceparent, payload)
  select head + 1, event_id, correlation_id, causation_id, command_id, schema_version, stream, event_type, actor,
    traceparent, payload::json
  from entry
  where expected < 0 or expected = head
  order by nth
  returning stream, position
)
select entry.head, inserted.position, false
from entry left join inserted using (stream)
order by entry.nth
