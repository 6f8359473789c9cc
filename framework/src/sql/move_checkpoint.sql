-- Moves a follower's checkpoint over positions that hold nothing for it.
--
--   $1 follower    text
--   $2 generation  bigint
--   $3 from        bigint  where it must be
--   $4 to          bigint
update annals.checkpoints
set position = $4, moved_at = clock_timestamp(), attempts = 0, last_error = null, failed_position = null,
  next_attempt_at = null
where follower = $1 and generation = $2 and partition = 0 and position = $3
