-- Begins to change the number of a follower's partitions: all of them go on to where the first of them is, and stop there. The
-- checkpoints are locked (lock_checkpoints.sql).
--
--   $1 follower    text
--   $2 partitions  integer
--   $3 actor       text
--   $4 reason      text
--
-- Returns (bigint): where they meet; no row if nothing serves, if something is being built, or if an event without
-- known keys is parked.
with live as (
  update annals.generations g set target_partitions = $2
  where g.follower = $1 and g.purpose = 'live' and not exists (
    select from annals.generations r where r.follower = $1 and r.purpose = 'rebuild')
  and not exists (
    select from annals.dead_letters d
    where d.follower = $1 and d.generation = g.generation and d.by_stream and d.state <> 'discarded')
  returning g.generation, g.partitions
),
place as (
  select max(c.position) as position from annals.checkpoints c join live on live.generation = c.generation where c.follower = $1
),
told as (
  update annals.checkpoints c set drain_to = place.position, fence = c.fence + 1
  from live, place where c.follower = $1 and c.generation = live.generation
),
recorded as (
  insert into annals.actions (follower, generation, action, actor, reason, details)
  select $1, generation, 'partitions', $3, $4, json_build_object('from', partitions, 'to', $2::integer) from live
)
select place.position from place, live
