-- Takes a build of a model out: its checkpoints are gone, so whoever works on it is fenced off. Its schema is dropped later
-- (drop_schema.sql).
--
--   $1 follower    text
--   $2 generation  bigint
with checkpoints as (
  delete from annals.checkpoints where follower = $1 and generation = $2
),
letters as (
  delete from annals.dead_letters where follower = $1 and generation = $2
)
update annals.generations set purpose = 'retired', state_at = clock_timestamp() where follower = $1 and generation = $2
