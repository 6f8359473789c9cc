-- Loads an aggregate: its latest usable snapshot and the events behind it, or all its events.
--
--   $1 stream            text
--   $2 snapshot_version  integer  snapshots of another version are ignored; negative: all are
--   $3 after             bigint   exclusive; above 0, no snapshot is used
--   $4 limit             bigint
--
-- Returns the columns of an envelope (framework/src/store/read.rs) and (state text): the state after this event, on the
-- first row if a snapshot was used.
with snapshot as materialized (
  select s.version, s.state
  from annals.snapshots s join annals.events e on e.stream = s.stream and e.version = s.version
  where s.stream = $1 and s.snapshot_version = $2 and $3::bigint = 0
)
select position, version, event_id, correlation_id, causation_id, command_id, recorded_at, schema_version, stream,
  event_type, actor, traceparent, payload,
  case when version = (select s.version from snapshot s) then (select s.state::text from snapshot s) end as state
from annals.events e
where stream = $1 and version > $3 and version >= coalesce((select s.version from snapshot s), 1)
order by version
limit $4
