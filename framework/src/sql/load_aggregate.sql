-- Loads an aggregate: its latest usable snapshot and the events behind it, or all its events.
--
--   $1 stream            text
--   $2 snapshot_version  integer  snapshots of another version are ignored; negative: all are
--   $3 after             bigint   exclusive; above 0, no snapshot is used
--   $4 limit             bigint
--   $5 whole             boolean  whether the envelope is wanted: without it, what only upcasts may look at is null
--
-- Returns the columns of an envelope (framework/src/store/read.rs) and (state text): the state after this event, on the
-- first row if a snapshot was used.
with snapshot as materialized (
  select s.version, s.state
  from annals.snapshots s join annals.events e on e.stream = s.stream and e.version = s.version
  where s.stream = $1 and s.snapshot_version = $2 and $3::bigint = 0
)
select position, version, case when $5 then event_id end, case when $5 then correlation_id end,
  case when $5 then causation_id end, case when $5 then command_id end, case when $5 then recorded_at end, schema_version,
  case when $5 then stream end, event_type, case when $5 then actor end, case when $5 then traceparent end, payload,
  case when version = (select s.version from snapshot s) then (select s.state::text from snapshot s) end as state
from annals.events e
where stream = $1 and version > $3 and version >= coalesce((select s.version from snapshot s), 1)
order by version
limit $4
