-- Halts a follower, for a reason that it gives itself, and lets its owners know by their fences.
--
--   $1 follower    text
--   $2 generation  bigint
--   $3 reason      text
--   $4 partition   integer  whose owner says so
--   $5 owner       uuid
with halted as (
  update annals.generations set state = 'halted', reason = $3, state_at = clock_timestamp()
  where follower = $1 and generation = $2 and state = 'running' and exists (
      select from annals.checkpoints c
      where c.follower = $1 and c.generation = $2 and ($5::uuid is null or (c.partition = $4 and c.owner = $5)))
  returning follower, generation
),
told as (
  update annals.checkpoints c set fence = c.fence + 1 from halted
  where c.follower = halted.follower and c.generation = halted.generation
)
insert into annals.actions (follower, generation, action, actor, reason)
select follower, generation, 'halt', 'annals', $3 from halted
