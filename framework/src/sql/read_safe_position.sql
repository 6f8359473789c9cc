-- Reads the position up to which the log is final: no event will ever appear at or below it.
--
-- The sequence first, the markers after: `bound is not null` makes the scan of the locks wait for the sequence. The
-- rows themselves belong into a later statement. Proof: framework/src/store/marker.rs.
--
-- Returns (bound bigint, marker bigint, in_recovery boolean). The safe position is the least of bound and marker.
with sequence as materialized (
  select coalesce(pg_sequence_last_value('annals.positions'), 0) as bound
)
select bound,
  (select min(bound + (((l.objid::bigint - bound + 2147483648) & 4294967295) - 2147483648))
   from pg_locks l
   where bound is not null
     and l.locktype = 'advisory' and l.objsubid = 2 and l.classid = 'annals.events'::regclass
     and l.database = (select d.oid from pg_database d where d.datname = current_database())) as marker,
  pg_is_in_recovery() as in_recovery
from sequence
