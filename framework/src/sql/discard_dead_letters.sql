-- Discards parked events, for a reason that stays. What waits behind them is tried at once. The checkpoints are locked
-- (lock_checkpoints.sql), and their fences tell whoever runs the follower.
--
--   $1 follower     text
--   $2 key          text    null for all
--   $3 fingerprint  text    null for all
--   $4 position     bigint  null for all
--   $5 actor        text
--   $6 reason       text
--
-- Returns (bigint): how many, those counted once that a rebuild has parked, too.
with chosen as (
  select d.generation, d.partition, d.key, d.position
  from annals.dead_letters d
  join annals.generations g on g.follower = d.follower and g.generation = d.generation and g.purpose in ('live', 'rebuild')
  where d.follower = $1 and d.state <> 'discarded' and ($2::text is null or d.key = $2)
    and ($3::text is null or d.fingerprint = $3) and ($4::bigint is null or d.position = $4)
),
discarded as (
  update annals.dead_letters d
  set state = 'discarded', next_attempt_at = null, discarded_by = $5, discarded_at = clock_timestamp(), reason = $6
  from chosen c
  where d.follower = $1 and (d.generation, d.partition, d.key, d.position) = (c.generation, c.partition, c.key, c.position)
  returning d.generation, d.partition
),
counted as (
  select generation, partition, count(*) as number from discarded group by generation, partition
),
told as (
  update annals.checkpoints c
  set parked = c.parked - n.number, discarded = c.discarded + n.number, fence = c.fence + 1
  from counted n where c.follower = $1 and (c.generation, c.partition) = (n.generation, n.partition)
),
-- What is being built and has not come there yet leaves it out, too.
shadows as (
  insert into annals.dead_letters
    (follower, generation, partition, position, by_stream, key, state, fingerprint, error, parked_at, discarded_by,
     discarded_at, reason)
  select d.follower, r.generation, c.partition, d.position, d.by_stream, d.key, 'discarded', d.fingerprint, d.error,
    d.parked_at, $5, clock_timestamp(), $6
  from chosen o
  join annals.dead_letters d on d.follower = $1
    and (d.generation, d.partition, d.key, d.position) = (o.generation, o.partition, o.key, o.position)
  join annals.generations g on g.follower = $1 and g.generation = o.generation and g.purpose = 'live'
  join annals.generations r on r.follower = $1 and r.purpose = 'rebuild'
  join annals.checkpoints c on c.follower = $1 and c.generation = r.generation and c.position < d.position
    and (d.by_stream or c.partition = annals.partition_of(d.key, r.partitions))
  on conflict do nothing
  returning generation
),
fenced as (
  update annals.checkpoints set fence = fence + 1
  where follower = $1 and generation in (select generation from shadows)
),
next as (
  select distinct on (d.generation, d.partition, d.key, d.by_stream) d.generation, d.partition, d.key, d.position
  from annals.dead_letters d
  join (select distinct generation, partition, key from chosen) as k
    on (d.generation, d.partition, d.key) = (k.generation, k.partition, k.key)
  where d.follower = $1 and d.state <> 'discarded'
    and not exists (
      select from chosen c
      where (c.generation, c.partition, c.key, c.position) = (d.generation, d.partition, d.key, d.position))
  order by d.generation, d.partition, d.key, d.by_stream, d.position
),
due as (
  update annals.dead_letters d set next_attempt_at = clock_timestamp()
  from next n
  where d.follower = $1 and (d.generation, d.partition, d.key, d.position) = (n.generation, n.partition, n.key, n.position)
    and d.state = 'queued'
),
recorded as (
  insert into annals.actions (follower, generation, action, actor, reason, details)
  select $1, generation, 'discard', $5, $6,
    json_build_object('events', sum(number), 'key', $2::text, 'fingerprint', $3::text, 'position', $4::bigint)
  from counted group by generation
)
select count(distinct (key, position)) from chosen
