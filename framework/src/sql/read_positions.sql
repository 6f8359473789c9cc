-- Reads how far the live models of followers have come.
--
--   $1 names  text[]
--
-- Returns (follower text, generation bigint, partition integer, position bigint).
select c.follower, c.generation, c.partition, c.position
from annals.checkpoints c
join annals.generations g on g.follower = c.follower and g.generation = c.generation
where c.follower = any ($1) and g.purpose = 'live'
