-- Lists what there is to do for followers beside following: rebuilds that were asked for, shadows, old schemas.
--
--   $1 names  text[]
--   $2 near   bigint  how near a shadow has to be to the log's end, in positions
--
-- Returns (follower text, what text, generation bigint, schema_name text, version integer, partitions integer, due boolean):
-- `rebuild` for one that was asked for, `shadow` for one that is being built, due if it is near, `drop` for a schema that
-- nothing serves any more, `partitions` for one whose partitions, `partitions` of them from now on, all stand where they are
-- to meet.
select f.name, 'rebuild', null::bigint, null::text, null::integer, null::integer, true
from annals.followers f where f.name = any ($1) and f.rebuild_requested_at is not null and has_database_privilege(current_database(), 'create')
union all
select g.follower, 'shadow', g.generation, g.schema_name, g.version, g.partitions, coalesce((
  select min(c.position) from annals.checkpoints c where c.follower = g.follower and c.generation = g.generation) > (
  select coalesce(max(e.position), 0) from annals.events e) - $2, false)
from annals.generations g where g.follower = any ($1) and g.purpose = 'rebuild' and g.state = 'running'
  and exists (
    select from pg_namespace n where n.nspname = g.schema_name and pg_has_role(n.nspowner, 'usage'))
union all
select g.follower, 'partitions', g.generation, g.schema_name, g.version, g.target_partitions, true
from annals.generations g
where g.purpose = 'live' and g.target_partitions is not null and g.follower = any ($1) and not exists (
  select from annals.checkpoints c
  where c.follower = g.follower and c.generation = g.generation and c.position is distinct from c.drain_to)
union all
select g.follower, 'drop', g.generation, g.schema_name, g.version, g.partitions, true
from annals.generations g
where g.purpose = 'retired' and g.state_at < clock_timestamp() - interval '5 seconds'
