-- Pauses or resumes a follower: what serves and what is being built. Whoever runs it is told by the fence. Why it had halted
-- stays to be read.
--
--   $1 follower  text
--   $2 state     text
--   $3 actor     text
--   $4 reason    text
--   $5 action    text
--
-- Returns (bigint): how many generations changed.
with changed as (
  update annals.generations
  set state = $2, reason = case when $2 = 'running' then null else format('%s, by %s', $4::text, $3::text)
      || case when state = 'halted' then coalesce('; it had halted: ' || reason, '') else '' end end,
    state_at = clock_timestamp()
  where follower = $1 and purpose in ('live', 'rebuild') and state <> $2
  returning follower, generation
),
told as (
  update annals.checkpoints c
  set fence = c.fence + 1, attempts = 0, last_error = null, failed_position = null, next_attempt_at = null
  from changed where (c.follower, c.generation) = (changed.follower, changed.generation)
),
recorded as (
  insert into annals.actions (follower, generation, action, actor, reason)
  select follower, generation, $5, $3, $4 from changed
)
select count(*) from changed
