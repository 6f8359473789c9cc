-- Counts what is parked in each partition, after the partitions were replaced.
--
--   $1 follower    text
--   $2 generation  bigint
update annals.checkpoints c set parked = n.parked, pairs = c.applied + c.discarded + n.parked
from (
  select k.partition, count(d.position) as parked
  from annals.checkpoints k
  left join annals.dead_letters d on d.follower = k.follower and d.generation = k.generation and d.partition = k.partition
    and d.state <> 'discarded'
  where k.follower = $1 and k.generation = $2
  group by k.partition
) as n
where c.follower = $1 and c.generation = $2 and c.partition = n.partition
