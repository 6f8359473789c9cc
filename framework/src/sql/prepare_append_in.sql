-- Bounds a transaction that is about to append, and makes sure that its commit is flushed.
--
--   $1 milliseconds  text  how long it may idle, and wait for a lock
--
-- Returns (isolation text): the transaction's isolation level; the other columns are the settings as they are now.
select current_setting('transaction_isolation') as isolation,
  set_config('idle_in_transaction_session_timeout', $1, true) as idle_deadline,
  set_config('lock_timeout', $1, true) as lock_deadline,
  set_config('synchronous_commit',
    case when current_setting('synchronous_commit') in ('off', 'local') then 'on'
         else current_setting('synchronous_commit') end, true) as synchronous_commit
