-- Reads how far a follower has come.
--
--   $1 follower  text
--
-- Returns (generation bigint, position bigint) of the live generation.
select c.generation, c.position
from annals.followers f
join annals.checkpoints c on c.follower = f.name and c.generation = f.generation and c.partition = 0
where f.name = $1
