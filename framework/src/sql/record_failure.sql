-- Shows that a follower failed, and when it tries again.
--
--   $1 follower         text
--   $2 generation       bigint
--   $3 attempts         integer
--   $4 error            text
--   $5 failed_position  bigint            the event that fails; null while it is not known
--   $6 pause_s          double precision
update annals.checkpoints
set attempts = $3, last_error = $4, failed_position = $5, next_attempt_at = clock_timestamp() + make_interval(secs => $6)
where follower = $1 and generation = $2 and partition = 0
