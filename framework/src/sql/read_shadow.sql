-- Reads how far a shadow has come.
--
--   $1 follower    text
--   $2 generation  bigint
--
-- Returns (position bigint, indexed boolean): the least position of its partitions; no row if it is no longer built.
select min(c.position), g.indexed
from annals.generations g
join annals.checkpoints c on c.follower = g.follower and c.generation = g.generation
where g.follower = $1 and g.generation = $2 and g.purpose = 'rebuild' and g.state = 'running'
group by g.indexed
