-- Frees what processes run that are not alive any more: it may have been in the middle of something. What they showed goes, too.
--
-- By the owner's name, not by that it is not there: a row that was freed and taken meanwhile is another's.
with gone as (
  delete from annals.breakers b
  where b.changed_at < statement_timestamp() - interval '1 minute' and not exists (
    select from annals.processes p where p.process_id = b.process_id and p.alive_until > statement_timestamp())
),
dead as materialized (
  select distinct s.owner from annals.sagas s
  where s.owner is not null and not exists (
    select from annals.processes p where p.process_id = s.owner and p.alive_until > statement_timestamp())
)
update annals.sagas s
set owner = null, due_at = statement_timestamp(), interrupted = true
from dead where s.owner = dead.owner
