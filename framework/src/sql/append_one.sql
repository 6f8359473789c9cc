-- Appends events to one stream: append_events.sql for a batch of one append that records no command id.
--
--   $1  stream          text
--   $2  expected        bigint      the version that the writer saw; negative: any
--   $3  correlation_id  uuid
--   $4  causation_id    uuid
--   $5  command_id      uuid
--   $6  actor           text
--   $7  traceparent     text
--   one element an event, one at least:
--   $8  event_id        uuid[]
--   $9  event_type      text[]
--   $10 schema_version  smallint[]
--   $11 payload         text[]
--
-- Returns a row (version bigint, position bigint) an event, in order; none if the stream's version is not as expected.
insert into annals.events (version, event_id, correlation_id, causation_id, command_id, schema_version, stream, event_type,
  actor, traceparent, payload)
select head.version + event.ordinal, event.event_id, $3, $4, $5, event.schema_version, $1, event.event_type, $6, $7,
  event.payload::json
from
  -- With `offset 0` the version is looked up once, not once for each use.
  (select coalesce((select v.version from annals.events v where v.stream = $1 order by v.version desc limit 1), 0) as version
   offset 0) head,
  unnest($8::uuid[], $9::text[], $10::smallint[], $11::text[])
    with ordinality as event(event_id, event_type, schema_version, payload, ordinal)
where $2::bigint < 0 or $2 = head.version
order by event.ordinal
returning version, position
