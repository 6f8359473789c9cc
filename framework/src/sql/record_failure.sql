-- Shows that a partition of a follower failed, and when it tries again.
--
--   $1 follower         text
--   $2 generation       bigint
--   $3 partition        integer
--   $4 owner            uuid
--   $5 attempts         integer
--   $6 error            text
--   $7 failed_position  bigint            the event that fails; null while it is not known
--   $8 pause_s          double precision
update annals.checkpoints
set attempts = $5, last_error = $6, failed_position = $7, next_attempt_at = clock_timestamp() + make_interval(secs => $8)
where follower = $1 and generation = $2 and partition = $3 and owner = $4
