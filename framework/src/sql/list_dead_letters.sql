-- Lists dead letters, with the events that they are about: those of what serves, and what only a rebuild has parked.
--
--   $1 follower     text    null for all
--   $2 key          text    null for all
--   $3 fingerprint  text    null for all
--   $4 position     bigint  null for all
--   $5 discarded    boolean whether those that were discarded are meant, or those that are parked
--   $6 limit        bigint
--
-- Returns (follower text, generation bigint, partition integer, position bigint, key text, by_stream boolean, state text,
-- attempts integer, fingerprint text, error text, parked_at timestamptz, failed_at timestamptz, next_attempt_at timestamptz,
-- discarded_by text, discarded_at timestamptz, reason text, stream text, version bigint, event_type text, event_id uuid,
-- payload json), in the order in which they would take effect.
select d.follower, d.generation, d.partition, d.position, d.key, d.by_stream, d.state, d.attempts, d.fingerprint, d.error,
  d.parked_at, d.failed_at, d.next_attempt_at, d.discarded_by, d.discarded_at, d.reason, e.stream, e.version, e.event_type,
  e.event_id, e.payload
from annals.dead_letters d
join annals.generations g on g.follower = d.follower and g.generation = d.generation and g.purpose in ('live', 'rebuild')
join annals.events e on e.position = d.position
left join annals.generations live on g.purpose = 'rebuild' and live.follower = d.follower and live.purpose = 'live'
left join annals.dead_letters served on served.follower = d.follower and served.generation = live.generation
  and (served.key, served.position, served.by_stream) = (d.key, d.position, d.by_stream) and (served.state = 'discarded') = $5
where ($1::text is null or d.follower = $1) and ($2::text is null or d.key = $2)
  and ($3::text is null or d.fingerprint = $3) and ($4::bigint is null or d.position = $4)
  and (d.state = 'discarded') = $5
  and served.follower is null
order by d.follower, d.generation, d.key, d.position
limit $6
