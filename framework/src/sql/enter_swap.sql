-- Enters a swap: the shadow's generation is the live one from now on, and whoever worked for the old one is fenced off.
--
--   $1 follower    text
--   $2 old         bigint
--   $3 old_schema  text    what the old one is called now
--   $4 new         bigint
--   $5 position    bigint  where the live model stood
with gone as (
  delete from annals.checkpoints where follower = $1 and generation = $2
),
letters as (
  delete from annals.dead_letters where follower = $1 and generation = $2
),
old as (
  update annals.generations set purpose = 'retired', schema_name = $3, state_at = clock_timestamp()
  where follower = $1 and generation = $2
  returning 1
),
fenced as (
  update annals.checkpoints set fence = fence + 1 where follower = $1 and generation = $4
),
action as (
  insert into annals.actions (follower, generation, action, actor, details)
  values ($1, $4, 'swap', 'annals', json_build_object('position', $5::bigint, 'old', $2::bigint))
)
select count(*) from old
