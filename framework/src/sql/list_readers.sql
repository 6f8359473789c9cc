-- Lists who has been reading a schema's tables for longer than a moment.
--
--   $1 schema  text
--
-- Returns (pid integer, application text, seconds double precision).
select distinct l.pid, coalesce(a.application_name, '') as application,
  extract(epoch from clock_timestamp() - a.xact_start)::double precision as seconds
from pg_locks l
join pg_class c on c.oid = l.relation
join pg_namespace n on n.oid = c.relnamespace and n.nspname = $1
left join pg_stat_activity a on a.pid = l.pid
where l.locktype = 'relation' and l.granted and l.mode = 'AccessShareLock' and l.pid <> pg_backend_pid()
  and l.database = (select d.oid from pg_database d where d.datname = current_database())
  and a.xact_start < clock_timestamp() - interval '1 second'
