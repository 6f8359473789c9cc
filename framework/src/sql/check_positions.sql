-- Checks that the sequence of positions is as the in-flight marker needs it.
--
-- Returns one row a fault: (text), what is wrong and what cures it.
with state as materialized (
  select coalesce(pg_sequence_last_value('annals.positions'), 0) as drawn,
    greatest(
      (select e.position from annals.events e order by e.position desc limit 1),
      (select max(c.position) from annals.checkpoints c)) as used,
    s.seqcache, s.seqcycle, s.seqincrement
  from pg_sequence s where s.seqrelid = 'annals.positions'::regclass
)
select format('the sequence of positions stands at %s, below position %s which is in use: with no writer running, '
  'select setval(%L, %s)', drawn, used, 'annals.positions', used)
from state where used > drawn
union all
select 'the sequence of positions must have CACHE 1, NO CYCLE and INCREMENT 1: alter sequence annals.positions cache 1 no cycle increment 1'
from state where seqcache <> 1 or seqcycle or seqincrement <> 1
union all
select 'the trigger mark_in_flight on annals.events is missing or not ENABLE ALWAYS: readers would miss events; '
  'restore it as migration 0001 makes it'
where not exists (
  select from pg_trigger t
  where t.tgrelid = 'annals.events'::regclass and t.tgname = 'mark_in_flight' and t.tgenabled = 'A')
union all
select format('role %s may not read the sequence of positions: grant usage, select on sequence annals.positions', current_user)
where not has_sequence_privilege('annals.positions', 'select')
