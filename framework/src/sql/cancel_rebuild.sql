-- Gives up what is being built for a follower. What serves stays as it is.
--
--   $1 follower  text
--   $2 actor     text
--   $3 reason    text
--
-- Returns (bigint): how many shadows were given up.
with shadow as (
  update annals.generations set purpose = 'retired', state_at = clock_timestamp()
  where follower = $1 and purpose = 'rebuild'
  returning follower, generation
),
checkpoints as (
  delete from annals.checkpoints c using shadow where (c.follower, c.generation) = (shadow.follower, shadow.generation)
),
letters as (
  delete from annals.dead_letters d using shadow where (d.follower, d.generation) = (shadow.follower, shadow.generation)
),
asked as (
  update annals.followers set rebuild_requested_at = null where name = $1
),
recorded as (
  insert into annals.actions (follower, generation, action, actor, reason)
  select follower, generation, 'cancel rebuild', $2, $3 from shadow
)
select count(*) from shadow
