-- Reads what is live of a follower, in the snapshot of this transaction: how far its rows go comes from beside them.
--
--   $1 follower  text
--
-- Returns (generation bigint, partition integer, position bigint, pairs bigint, counted_after bigint, letters text: what its
-- dead letters are, hashed).
select c.generation, c.partition, p.position, c.pairs, c.counted_after,
  (select md5(coalesce(string_agg(format('%s %s %s', d.position, d.key, d.by_stream), ',' order by d.position, d.key), ''))
   from annals.dead_letters d
   where d.follower = c.follower and d.generation = c.generation and d.partition = c.partition) as letters
from annals.checkpoints c
join annals.generations g on g.follower = c.follower and g.generation = c.generation and g.purpose = 'live'
join read_model._position p on p.partition = c.partition
where c.follower = $1
order by c.partition
