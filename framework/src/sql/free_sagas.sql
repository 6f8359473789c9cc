-- Frees what processes run that are not alive any more: it may have been in the middle of something. What they showed goes, too.
with gone as (
  delete from annals.breakers b where not exists (
    select from annals.processes p where p.process_id = b.process_id and p.alive_until > statement_timestamp() - interval '1 minute')
)
update annals.sagas s
set owner = null, due_at = statement_timestamp(), interrupted = true
where s.owner is not null and not exists (
  select from annals.processes p where p.process_id = s.owner and p.alive_until > statement_timestamp())
