-- Gives a partition of a generation to a process, up to a position.
--
--   $1 follower    text
--   $2 generation  bigint
--   $3 partition   integer
--   $4 owner       uuid
--   $5 drain_to    bigint
update annals.checkpoints set owner = $4, owned_at = clock_timestamp(), drain_to = $5, fence = fence + 1
where follower = $1 and generation = $2 and partition = $3
