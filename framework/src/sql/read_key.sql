-- Reads where the live partition of a view's key stands.
--
--   $1 follower  text
--   $2 key       text
--
-- Returns (generation bigint, version integer, rebuilding boolean, partition integer, position bigint).
select g.generation, g.version,
  exists (select from annals.generations r where r.follower = $1 and r.purpose = 'rebuild') as rebuilding,
  c.partition, c.position
from annals.generations g
join annals.checkpoints c on c.follower = g.follower and c.generation = g.generation
  and c.partition = annals.partition_of($2, g.partitions)
where g.follower = $1 and g.purpose = 'live'
