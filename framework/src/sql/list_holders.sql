-- Names the open transactions that have appended, and so hold the safe position back, lowest first.
--
-- Returns (position bigint, pid integer, application text, age_s double precision, state text, query text). Of another
-- login's session, without pg_read_all_stats, the state is 'hidden', the age null and the query empty.
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
  coalesce(a.application_name, 'prepared transaction ' || p.gid, '') as application,
  case when m.pid is null then coalesce(extract(epoch from clock_timestamp() - p.prepared), 0)
    else extract(epoch from clock_timestamp() - a.xact_start) end::double precision as age_s,
  case when m.pid is null then 'prepared' else coalesce(a.state, 'hidden') end as state,
  case when a.state is null then '' else coalesce(a.query, '') end as query
from marker m
left join pg_stat_activity a on a.pid = m.pid
-- A prepared transaction has no process; what leads from its marker to its name is the lock on its own number.
left join pg_locks own on m.pid is null and own.pid is null and own.locktype = 'transactionid'
  and own.virtualtransaction = m.virtualtransaction
left join pg_prepared_xacts p on p.transaction = own.transactionid
where m.pid is null or a.pid is not null
order by m.position, m.pid
