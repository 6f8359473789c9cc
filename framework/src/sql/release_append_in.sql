-- Ends an append inside a transaction of the caller, and gives the caller its wait for locks back.
select set_config('lock_timeout', current_setting('annals.lock_timeout'), true);
release savepoint annals_append
