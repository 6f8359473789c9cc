-- Reads where the partitions of a generation stand.
--
--   $1 follower    text
--   $2 generation  bigint
--
-- Returns (partition integer, position bigint, drain_to bigint, pairs bigint, state text, reason text).
select c.partition, c.position, c.drain_to, c.pairs, g.state, coalesce(g.reason, c.last_error)
from annals.checkpoints c
join annals.generations g on g.follower = c.follower and g.generation = c.generation
where c.follower = $1 and c.generation = $2
order by c.partition
