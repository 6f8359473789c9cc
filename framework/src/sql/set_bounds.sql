-- Lets the server itself end what nobody waits for any more, and chooses how the store's reads are planned. Not a statement
-- as it stands: what begins with $ is filled in, for the simple protocol (framework/src/store/session.rs).
--
--   $statement, $lock, $idle  milliseconds
--   $index_plans              boolean       whether plans know no values
--   $local                    boolean       whether this ends with the transaction
select set_config('statement_timeout', '$statement', $local),
  set_config('lock_timeout', '$lock', $local),
  set_config('idle_in_transaction_session_timeout', '$idle', $local),
  set_config('plan_cache_mode',
    case when $index_plans then 'force_generic_plan' else current_setting('plan_cache_mode') end, $local),
  set_config('jit', case when $index_plans then 'off' else current_setting('jit') end, $local)
