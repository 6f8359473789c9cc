-- Names the open transactions that have appended, and so hold the safe position back, lowest first.
--
-- Returns (position bigint, pid integer, application text, age_s double precision, state text, query text).
with sequence as materialized (
  select coalesce(pg_sequence_last_value('annals.positions'), 0) as bound
),
marker as materialized (
  select bound + (((l.objid::bigint - bound + 2147483648) & 4294967295) - 2147483648) as position, l.pid,
    l.virtualtransaction
  from sequence cross join pg_locks l
  where l.locktype = 'advisory' and l.objsubid = 2 and l.classid = 'annals.events'::regclass
    and l.database = (select d.oid from pg_database d where d.datname = current_database())
)
select m.position, m.pid,
  coalesce(a.application_name, (select 'prepared transaction ' || p.gid), '') as application,
  coalesce(extract(epoch from clock_timestamp() - coalesce(a.xact_start, p.prepared)), 0)::double precision as age_s,
  coalesce(a.state, 'prepared') as state, coalesce(a.query, '') as query
from marker m
left join pg_stat_activity a on a.pid = m.pid
left join pg_prepared_xacts p on m.pid is null and m.virtualtransaction = '-1/' || p.transaction::text
order by m.position, m.pid
