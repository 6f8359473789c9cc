-- Takes partitions that nobody alive owns. The fence moves on: what their owner before had begun does not commit any more.
--
--   $1 process_id   uuid
--   $2 followers    text[]
--   $3 generations  bigint[]
--   $4 partitions   integer[]
--
-- Returns (follower text, generation bigint, partition integer) of those it got. One that a batch holds is left for later.
with free as (
  select c.follower, c.generation, c.partition
  from annals.checkpoints c
  join unnest($2::text[], $3::bigint[], $4::integer[]) as wanted(follower, generation, partition)
    on (c.follower, c.generation, c.partition) = (wanted.follower, wanted.generation, wanted.partition)
  where c.owner is null
    or not exists (select from annals.processes p where p.process_id = c.owner and p.alive_until > clock_timestamp())
  for update of c skip locked
)
update annals.checkpoints c set owner = $1, owned_at = clock_timestamp(), fence = c.fence + 1
from free
where (c.follower, c.generation, c.partition) = (free.follower, free.generation, free.partition)
returning c.follower, c.generation, c.partition
