-- Lets parked keys be tried again now, each from its first event on.
--
--   $1 follower     text
--   $2 key          text    null for all
--   $3 fingerprint  text    of the first event's failure; null for all
--   $4 position     bigint  of an event that is parked for the key; null for all
--   $5 actor        text
--   $6 reason       text
--
-- Returns (bigint): how many keys.
with first as (
  select distinct on (d.generation, d.partition, d.key, d.by_stream) d.generation, d.partition, d.key, d.position, d.fingerprint
  from annals.dead_letters d
  join annals.generations g on g.follower = d.follower and g.generation = d.generation and g.purpose in ('live', 'rebuild')
  where d.follower = $1 and d.state <> 'discarded' and ($2::text is null or d.key = $2)
  order by d.generation, d.partition, d.key, d.by_stream, d.position
),
due as (
  update annals.dead_letters d set next_attempt_at = clock_timestamp(), attempts = 0
  from first f
  where d.follower = $1 and (d.generation, d.partition, d.key, d.position) = (f.generation, f.partition, f.key, f.position)
    and ($3::text is null or f.fingerprint = $3)
    and ($4::bigint is null or exists (
      select from annals.dead_letters p
      where p.follower = $1 and (p.generation, p.partition, p.key, p.position) = (f.generation, f.partition, f.key, $4)))
  returning d.generation, d.key, d.by_stream
),
recorded as (
  insert into annals.actions (follower, generation, action, actor, reason, details)
  select $1, generation, 'retry', $5, $6,
    json_build_object('keys', count(*), 'key', $2::text, 'fingerprint', $3::text, 'position', $4::bigint)
  from due group by generation
)
select count(distinct (key, by_stream)) from due
