-- Moves a partition's checkpoint over positions that hold nothing for it.
--
--   $1 follower    text
--   $2 generation  bigint
--   $3 partition   integer
--   $4 fence       bigint  what it must be
--   $5 from        bigint  where it must be
--   $6 to          bigint
update annals.checkpoints
set position = $6, moved_at = clock_timestamp(), attempts = 0, last_error = null, failed_position = null,
  next_attempt_at = null
where follower = $1 and generation = $2 and partition = $3 and fence = $4 and position = $5
