-- Lists every partition of the named followers, and who has it.
--
--   $1 names       text[]
--   $2 process_id  uuid    this process
--
-- Returns (follower text, generation bigint, partition integer, partitions integer, version integer, purpose text,
-- schema_name text, state text, reason text, position bigint, fence bigint, owner uuid, owner_alive boolean,
-- due boolean: something parked is to be tried again, attempts integer, last_error text, failed_position bigint,
-- next_attempt_at timestamptz, parked bigint, runners uuid[]: the processes that are alive and can run it).
select c.follower, c.generation, c.partition, g.partitions, g.version, g.purpose, g.schema_name, g.state, g.reason,
  c.position, c.fence, c.owner, c.owner is not null and p.process_id is not null as owner_alive,
  c.owner = $2 and c.parked > 0 and exists (
    select from annals.dead_letters d
    where d.next_attempt_at <= clock_timestamp() and d.follower = c.follower and d.generation = c.generation
      and d.partition = c.partition and d.state <> 'discarded' and d.position = (
        select e.position from annals.dead_letters e
        where (e.follower, e.generation, e.partition, e.key) = (d.follower, d.generation, d.partition, d.key)
          and e.by_stream = d.by_stream and e.state <> 'discarded'
        order by e.position limit 1)) as due,
  c.attempts, c.last_error, c.failed_position, c.next_attempt_at, c.parked,
  array(
    select r.process_id from annals.processes r
    where r.alive_until > clock_timestamp() and c.follower || ':' || g.version = any (r.runs)
      and (g.purpose = 'live' or r.may_build)
    order by r.process_id) as runners
from annals.checkpoints c
join annals.generations g on g.follower = c.follower and g.generation = c.generation
left join annals.processes p on p.process_id = c.owner and p.alive_until > clock_timestamp()
where c.follower = any ($1) and g.purpose in ('live', 'rebuild')
order by c.follower, c.generation, c.partition
