-- Tells which backend answers, and for which database. For the simple protocol.
--
-- Returns (backend text, database text).
select pg_backend_pid()::text as backend,
  (select oid from pg_database where datname = current_database()) || ' since ' || extract(epoch from pg_postmaster_start_time()) as database
