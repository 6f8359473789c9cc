-- Ends a backend that may still hold the fate of an append. One whose start this role may not see is not gone.
--
--   $1 pid          integer
--   $2 started      timestamptz
--   $3 transaction  timestamptz  behind a pooler: since when it was in that transaction; in another one it is somebody else's
--
-- Returns (gone boolean, told boolean): whether it is gone already; else whether it was told to go.
with held as materialized (
  select a.pid from pg_stat_activity a
  where a.pid = $1 and coalesce(a.backend_start = $2, true)
    and ($3::timestamptz is null or a.backend_start is null or a.xact_start = $3)
)
select not exists (select from held) as gone, (select bool_and(pg_terminate_backend(pid)) from held) as told
