-- Reads how far a partition of a follower has come, if this process owns it and it is to run. Whoever took it may have listed it
-- before a swap, or before the number of partitions changed: then it is not what they are about to run.
--
--   $1 follower    text
--   $2 generation  bigint
--   $3 partition   integer
--   $4 owner       uuid
--   $5 schema      text    where its rows are to be
--   $6 partitions  integer how many there are to be
--
-- Returns (position bigint, fence bigint, parked bigint, drain_to bigint, pace double precision).
select c.position, c.fence, c.parked, c.drain_to, g.pace
from annals.checkpoints c
join annals.generations g on g.follower = c.follower and g.generation = c.generation
where c.follower = $1 and c.generation = $2 and c.partition = $3 and c.owner = $4 and g.state = 'running'
  and g.schema_name = $5 and g.partitions = $6
