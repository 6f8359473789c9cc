-- Replaces the partitions of a follower once all of them stand at one position. What is parked goes to the partition of its
-- key; what was discarded of a stream, whose keys are not known, is discarded and counted in each of them. The checkpoints are locked (lock_checkpoints.sql).
--
--   $1 follower    text
--   $2 generation  bigint
--   $3 partitions  integer
--
-- Returns (bigint): where they stand; no row if they do not stand together, if so many are not
-- asked for any more, or if an event without known keys is parked.
with place as (
  select min(c.position) as position, max(c.fence) as fence, max(c.version) as version, max(c.counted_after) as counted_after,
    sum(c.pairs)::bigint as pairs, sum(c.applied)::bigint as applied, sum(c.parked)::bigint as parked,
    sum(c.discarded)::bigint as discarded
  from annals.checkpoints c
  where c.follower = $1 and c.generation = $2
  having bool_and(c.position = c.drain_to) and exists (
    select from annals.generations g where g.follower = $1 and g.generation = $2 and g.target_partitions = $3) and not exists (
    select from annals.dead_letters d where d.follower = $1 and d.generation = $2 and d.by_stream and d.state <> 'discarded')
),
thrown as (
  select d.* from annals.dead_letters d
  where d.follower = $1 and d.generation = $2 and d.by_stream and d.state = 'discarded' and exists (select from place)
),
change as (
  select count(distinct (position, key)) * $3::bigint - count(*) as pairs from thrown
),
lost as (
  delete from annals.dead_letters d
  where d.follower = $1 and d.generation = $2 and d.by_stream and d.partition > $3 and exists (select from place)
),
spread as (
  insert into annals.dead_letters
    (follower, generation, partition, position, by_stream, attempts, key, state, fingerprint, error, parked_at, failed_at,
     discarded_by, discarded_at, reason)
  select distinct on (t.position, t.key, nth) t.follower, t.generation, nth, t.position, t.by_stream, t.attempts, t.key, t.state,
    t.fingerprint, t.error, t.parked_at, t.failed_at, t.discarded_by, t.discarded_at, t.reason
  from thrown t cross join generate_series(1, $3) as nth
  order by t.position, t.key, nth, t.partition
  on conflict do nothing
),
generation as (
  update annals.generations set partitions = $3, target_partitions = null
  where follower = $1 and generation = $2 and exists (select from place)
),
gone as (
  delete from annals.checkpoints
  where follower = $1 and generation = $2 and partition > $3 and exists (select from place)
),
placed as (
  insert into annals.checkpoints
    (follower, generation, partition, version, position, fence, counted_after, pairs, applied, parked, discarded)
  select $1, $2, nth, version, position, fence + 1, counted_after, case nth when 1 then place.pairs + change.pairs else 0 end,
    case nth when 1 then applied else 0 end, 0, case nth when 1 then discarded + change.pairs else 0 end
  from place, change, generate_series(1, $3) as nth
  on conflict (follower, generation, partition) do update
  set fence = excluded.fence, owner = null, drain_to = null, pairs = excluded.pairs, applied = excluded.applied,
    parked = 0, discarded = excluded.discarded
),
letters as (
  update annals.dead_letters set partition = annals.partition_of(key, $3)
  where follower = $1 and generation = $2 and not by_stream and exists (select from place)
)
select position from place
