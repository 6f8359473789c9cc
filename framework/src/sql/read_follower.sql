-- Reads what a follower is in the store, and what is being made of it.
--
--   $1 name  text
--
-- Returns (kind text, generation bigint, version integer, categories text[], skips text[], partitions integer) of what is
-- live, and (rebuild bigint, rebuild_version integer) of its rebuild, if there is one.
select f.kind, g.generation, g.version, g.categories, g.skips, g.partitions,
  r.generation as rebuild, r.version as rebuild_version
from annals.followers f
join annals.generations g on g.follower = f.name and g.purpose = 'live'
left join annals.generations r on r.follower = f.name and r.purpose = 'rebuild'
where f.name = $1
