-- Parks events for keys: those that failed, and those that wait behind them. One that failed again counts its attempts.
--
--   $1 follower      text
--   $2 generation    bigint
--   $3 partition     integer
--   $4 positions     bigint[]
--   $5 keys          text[]
--   $6 by_stream     boolean[]
--   $7 fingerprints  text[]            null for one that waits
--   $8 errors        text[]
--   $9 delays_s      double precision[]  how long until the next attempt after the first, the second …; past its end there is none
insert into annals.dead_letters as d
  (follower, generation, partition, position, key, by_stream, state, fingerprint, error, attempts, failed_at, next_attempt_at)
select $1, $2, $3, n.position, n.key, n.by_stream, case when n.error is null then 'queued' else 'failed' end, n.fingerprint,
  n.error, case when n.error is null then 0 else 1 end, case when n.error is not null then clock_timestamp() end,
  case when n.error is not null then clock_timestamp() + make_interval(secs => ($9::double precision[])[1]) end
from unnest($4::bigint[], $5::text[], $6::boolean[], $7::text[], $8::text[]) as n(position, key, by_stream, fingerprint, error)
on conflict (follower, generation, partition, key, position) do update
set state = excluded.state, fingerprint = excluded.fingerprint, error = excluded.error, attempts = d.attempts + 1,
  failed_at = excluded.failed_at,
  next_attempt_at = clock_timestamp() + make_interval(secs => ($9::double precision[])[d.attempts + 1])
