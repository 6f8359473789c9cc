-- Gives a follower another name in every table. Its schema gets its own (rename_schema.sql).
--
--   $1 old     text
--   $2 new     text
--   $3 schema  text  the live schema's new name
--   $4 actor   text
--   $5 reason  text
--
-- Returns (text): the live schema's name till now; no row if there is no such follower.
with known as (
  insert into annals.followers (name, kind, definition, created_at)
  select $2, kind, definition, created_at from annals.followers where name = $1
  returning name
),
old as (
  select g.schema_name from annals.generations g where g.follower = $1 and g.purpose = 'live'
),
generations as (
  update annals.generations g set follower = $2,
    schema_name = case when g.purpose = 'live' then $3 else g.schema_name end
  where g.follower = $1
),
checkpoints as (
  update annals.checkpoints set follower = $2, fence = fence + 1, owner = null where follower = $1
),
letters as (
  update annals.dead_letters set follower = $2 where follower = $1
),
gone as (
  delete from annals.followers where name = $1
),
recorded as (
  insert into annals.actions (follower, action, actor, reason, details)
  select $2, 'rename', $4, $5, json_build_object('old', $1::text) from known
)
select schema_name from old
