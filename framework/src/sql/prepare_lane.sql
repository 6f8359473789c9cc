-- Settles everything that an append needs of its session, whatever the role or the database says. Not a statement as it
-- stands: what begins with $ is filled in, for the simple protocol (framework/src/store/lane.rs).
--
--   $lock, $statement  milliseconds
--   $local             boolean       whether this ends with the transaction, which has begun then
--
-- Returns (pid integer, started timestamptz, transaction timestamptz): which backend this is, and since when it is in the
-- transaction. The planner's settings keep the append's plan to index probes and hashes, which is right at any size of the
-- tables.
select a.pid, a.backend_start as started, case when $local then a.xact_start end as transaction,
  set_config('lock_timeout', '$lock', $local),
  set_config('statement_timeout', '$statement', $local),
  set_config('idle_in_transaction_session_timeout',
    case when $local then '$statement' else current_setting('idle_in_transaction_session_timeout') end, $local),
  set_config('default_transaction_isolation', 'read committed', $local),
  set_config('default_transaction_read_only', 'off', $local),
  set_config('synchronous_commit',
    case when current_setting('synchronous_commit') in ('off', 'local') then 'on'
         else current_setting('synchronous_commit') end, $local),
  set_config('plan_cache_mode', 'force_generic_plan', $local),
  set_config('enable_nestloop', 'off', $local),
  set_config('enable_mergejoin', 'off', $local),
  set_config('enable_seqscan', 'off', $local),
  set_config('jit', 'off', $local)
from pg_stat_get_activity(pg_backend_pid()) a
