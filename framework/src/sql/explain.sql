-- Tells what every follower knows of a position.
--
--   $1 position  bigint
--
-- Returns (follower text, version integer, generation bigint, partitions integer, categories text[], skips text[],
-- positions bigint[]: where its partitions stand, owners text[], moved_at timestamptz, letters json: the dead letters about
-- this position).
select g.follower, g.version, g.generation, g.partitions, g.categories, g.skips,
  array_agg(c.position order by c.partition), array_agg(p.name order by c.partition), max(c.moved_at),
  (select json_agg(json_build_object('partition', d.partition, 'key', d.key, 'state', d.state, 'error', d.error,
     'attempts', d.attempts, 'parked_at', d.parked_at, 'reason', d.reason) order by d.key)
   from annals.dead_letters d where d.follower = g.follower and d.generation = g.generation and d.position = $1)
from annals.generations g
join annals.checkpoints c on c.follower = g.follower and c.generation = g.generation
left join annals.processes p on p.process_id = c.owner and p.alive_until > clock_timestamp()
where g.purpose = 'live'
group by g.follower, g.version, g.generation, g.partitions, g.categories, g.skips
order by g.follower
