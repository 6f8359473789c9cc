-- Changes how long an appender's connection waits for a lock.
--
--   $1 lock_deadline  text  milliseconds
select set_config('lock_timeout', $1, false)
