-- Gives up partitions.
--
--   $1 process_id   uuid
--   $2 followers    text[]
--   $3 generations  bigint[]
--   $4 partitions   integer[]
update annals.checkpoints c set owner = null, owned_at = null, fence = c.fence + 1
from unnest($2::text[], $3::bigint[], $4::integer[]) as given(follower, generation, partition)
where (c.follower, c.generation, c.partition) = (given.follower, given.generation, given.partition) and c.owner = $1
