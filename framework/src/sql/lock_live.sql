-- Holds the live checkpoints of a follower, for the rest of the transaction: nothing moves them on.
--
--   $1 follower  text
--
-- Returns (generation bigint, position bigint) of each partition.
select c.generation, c.position
from annals.checkpoints c
join annals.generations g on g.follower = c.follower and g.generation = c.generation
where c.follower = $1 and g.purpose = 'live'
order by c.partition
for update of c
