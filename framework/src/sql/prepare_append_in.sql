-- Bounds a transaction that is about to append, and makes sure that its commit is flushed.
--
--   $1 milliseconds  text  how long it may idle at most, and wait for a lock
--
-- Returns (isolation text): the transaction's isolation level; the other columns are the settings as they are now. A
-- released savepoint leaves its settings behind: what the lock's was, release_append_in puts back, and the idle time
-- becomes only ever shorter (0 is for ever).
with caller as materialized (
  select current_setting('lock_timeout') as lock_timeout,
    1000 * extract(epoch from current_setting('idle_in_transaction_session_timeout')::interval) as idle_milliseconds,
    current_setting('synchronous_commit') as synchronous_commit
)
select current_setting('transaction_isolation') as isolation,
  set_config('annals.lock_timeout', lock_timeout, true) as callers_lock_timeout,
  set_config('lock_timeout', $1, true) as lock_timeout,
  set_config('idle_in_transaction_session_timeout',
    least(nullif(idle_milliseconds, 0), $1::numeric)::bigint::text, true) as idle_timeout,
  set_config('synchronous_commit',
    case when synchronous_commit in ('off', 'local') then 'on' else synchronous_commit end, true) as synchronous_commit
from caller
