-- Groups the failures that look alike.
--
--   $1 follower  text  null for all
--
-- Returns (follower text, fingerprint text, error text, failed bigint, waiting bigint: how many wait behind those that failed,
-- oldest timestamptz, next_attempt_at timestamptz), the largest group first.
select d.follower, d.fingerprint, min(d.error), count(*), coalesce(sum(w.waiting), 0)::bigint, min(d.parked_at),
  min(d.next_attempt_at)
from annals.dead_letters d
join annals.generations g on g.follower = d.follower and g.generation = d.generation and g.purpose = 'live'
left join lateral (
  select count(*) as waiting from annals.dead_letters q
  where q.follower = d.follower and q.generation = d.generation and q.partition = d.partition and q.key = d.key
    and q.position > d.position and q.state = 'queued'
) as w on true
where d.state = 'failed' and ($1::text is null or d.follower = $1)
group by d.follower, d.fingerprint
order by count(*) desc, d.fingerprint
