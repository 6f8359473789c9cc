-- Settles everything that an appender's connection needs, whatever the role or the database says.
--
--   $1 lock_deadline       text  milliseconds
--   $2 statement_deadline  text  milliseconds
--
-- Returns (pid integer, started timestamptz): which backend this is. The planner's settings keep the append's plan to
-- index probes and hashes, which is right at any size of the tables.
select pg_backend_pid() as pid,
  (select a.backend_start from pg_stat_activity a where a.pid = pg_backend_pid()) as started,
  set_config('lock_timeout', $1, false),
  set_config('statement_timeout', $2, false),
  set_config('default_transaction_isolation', 'read committed', false),
  set_config('default_transaction_read_only', 'off', false),
  set_config('synchronous_commit',
    case when current_setting('synchronous_commit') in ('off', 'local') then 'on'
         else current_setting('synchronous_commit') end, false),
  set_config('plan_cache_mode', 'force_generic_plan', false),
  set_config('enable_nestloop', 'off', false),
  set_config('enable_mergejoin', 'off', false),
  set_config('jit', 'off', false)
