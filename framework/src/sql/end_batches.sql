-- Ends the transactions in which a process worked that is no longer alive, or stopped: until they end, they keep others out.
--
--   $1 owner  uuid
--
-- Returns (bigint): how many were ended.
select count(*) filter (where pg_terminate_backend(l.pid))
from pg_locks l
where l.locktype = 'advisory' and l.objsubid = 2 and l.granted
  and l.classid = 'annals.checkpoints'::regclass and l.objid = (hashtext($1::text)::bigint & 4294967295)::oid
  and l.database = (select d.oid from pg_database d where d.datname = current_database())
