-- Lets the store forget a follower. Its schemas are dropped a little later.
--
--   $1 follower  text
--   $2 actor     text
--   $3 reason    text
--   $4 suffix    text  behind the live schema's name from now on
--
-- Returns (generation bigint, schema_name text) of what was live; no row if there is no such follower.
with live as (
  select g.generation, g.schema_name from annals.generations g where g.follower = $1 and g.purpose = 'live'
),
generations as (
  update annals.generations g
  set purpose = 'retired', state_at = clock_timestamp(),
    schema_name = case when g.purpose = 'live' then g.schema_name || '_' || $4::text else g.schema_name end
  where g.follower = $1
),
checkpoints as (
  delete from annals.checkpoints where follower = $1
),
letters as (
  delete from annals.dead_letters where follower = $1
),
gone as (
  delete from annals.followers where name = $1 returning name
),
recorded as (
  insert into annals.actions (follower, action, actor, reason) select name, 'forget', $2, $3 from gone
)
select generation, schema_name from live
