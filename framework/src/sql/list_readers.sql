-- Lists the transactions that read a schema's tables, but for followers' batches (begin_batch.sql).
--
--   $1 schema  text
--
-- Returns (transaction text, pid integer, application text, seconds double precision): the last two empty where this role may
-- not see them.
select distinct l.virtualtransaction as transaction, l.pid, coalesce(a.application_name, '') as application,
  extract(epoch from clock_timestamp() - a.xact_start)::double precision as seconds
from pg_locks l
join pg_class c on c.oid = l.relation and c.relkind in ('r', 'p')
join pg_namespace n on n.oid = c.relnamespace and n.nspname = $1
left join pg_stat_activity a on a.pid = l.pid
where l.locktype = 'relation' and l.granted and l.mode = 'AccessShareLock' and l.pid <> pg_backend_pid()
  and l.database = (select d.oid from pg_database d where d.datname = current_database())
  and not exists (
    select from pg_locks b
    where b.pid = l.pid and b.locktype = 'advisory' and b.objsubid = 2 and b.classid = 'annals.checkpoints'::regclass)
