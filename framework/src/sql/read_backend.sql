-- Tells since when the backend of this session runs, and the time. Behind a pooler, where a connection that still stands says
-- nothing about the server: a backend that ran before the last look has seen no crash since.
--
-- Returns (started timestamptz, now timestamptz); null if this role may not see its own session.
select (select a.backend_start from pg_stat_get_activity(pg_backend_pid()) a) as started, clock_timestamp() as now
