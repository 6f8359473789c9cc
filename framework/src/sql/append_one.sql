-- Appends one event: append_events.sql for a batch of one event that records no command id.
--
--   $1  stream          text
--   $2  expected        bigint      the version that the writer saw; negative: any
--   $3  correlation_id  uuid
--   $4  causation_id    uuid
--   $5  command_id      uuid
--   $6  actor           text
--   $7  traceparent     text
--   $8  event_id        uuid
--   $9  event_type      text
--   $10 schema_version  smallint
--   $11 payload         text
--
-- Returns a row (head bigint, position bigint, known boolean), as append_events.sql does; none if the stream's version is not
-- as expected.
insert into annals.events (version, event_id, correlation_id, causation_id, command_id, schema_version, stream, event_type,
  actor, traceparent, payload)
select head.version + 1, $8, $3, $4, $5, $10, $1, $9, $6, $7, $11::text::json
from (select coalesce((select v.version from annals.events v where v.stream = $1 order by v.version desc limit 1), 0)) as
  head(version)
where $2::bigint < 0 or $2 = head.version
returning version - 1, position, false
