-- Ends a backend that may still hold the fate of an append. One whose start this role may not see is not gone.
--
--   $1 pid      integer
--   $2 started  timestamptz
--
-- Returns (gone boolean, told boolean): whether it is gone already; else whether it was told to go.
select not exists (select from pg_stat_activity a where a.pid = $1 and coalesce(a.backend_start = $2, true)) as gone,
  (select bool_and(pg_terminate_backend(a.pid)) from pg_stat_activity a where a.pid = $1 and coalesce(a.backend_start = $2, true)) as told
