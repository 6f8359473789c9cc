-- Lists versions of sagas of which instances are open, and that no process which is alive has.
--
--   $1 sagas  text[]
--
-- Returns (saga text, definition integer, instances bigint).
select o.saga, o.definition, o.instances
from (
  select s.saga, s.definition, count(*) as instances from annals.sagas s
  where s.saga = any ($1) and s.state not in ('completed', 'compensated', 'early')
  group by s.saga, s.definition) as o
where not exists (
  select from annals.processes p
  where p.alive_until > statement_timestamp() and o.saga || ':' || o.definition = any (p.runs))
