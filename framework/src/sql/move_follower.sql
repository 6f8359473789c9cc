-- Moves the checkpoint of a partition whose effects are none of the store's rows, once they have taken place.
--
--   $1 follower    text
--   $2 generation  bigint
--   $3 partition   integer
--   $4 fence       bigint    what it must be
--   $5 from        bigint    where it must be
--   $6 to          bigint
--   $7 counts      bigint[]  pairs, applied, parked, discarded: by how much each grows
update annals.checkpoints
set position = $6, fence = fence + case when $5::bigint = $6::bigint then 1 else 0 end,
  moved_at = clock_timestamp(), attempts = 0, last_error = null, failed_position = null, next_attempt_at = null,
  pairs = pairs + ($7::bigint[])[1], applied = applied + ($7::bigint[])[2],
  parked = parked + ($7::bigint[])[3], discarded = discarded + ($7::bigint[])[4]
where follower = $1 and generation = $2 and partition = $3 and fence = $4 and position = $5
