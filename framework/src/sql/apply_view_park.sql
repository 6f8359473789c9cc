-- Ends apply_view.sql where events of the batch are parked, as park_events.sql parks them: one round trip for all.
--
--   $11 positions     bigint[]
--   $12 keys          text[]
--   $13 by_stream     boolean[]
--   $14 fingerprints  text[]            null for one that waits
--   $15 errors        text[]
--   $16 delays_s      double precision[]
--
-- Returns (boolean): whether the checkpoint moved. If it did not, nothing was changed.
, parked as (
  insert into annals.dead_letters as d
    (follower, generation, partition, position, key, by_stream, state, fingerprint, error, attempts, failed_at, next_attempt_at)
  select $1, $2, $3, n.position, n.key, n.by_stream, case when n.error is null then 'queued' else 'failed' end, n.fingerprint,
    n.error, case when n.error is null then 0 else 1 end, case when n.error is not null then clock_timestamp() end,
    case when n.error is not null then clock_timestamp() + make_interval(secs => ($16::double precision[])[1]) end
  from unnest($11::bigint[], $12::text[], $13::boolean[], $14::text[], $15::text[]) as n(position, key, by_stream, fingerprint, error)
  where exists (select from moved)
  on conflict (follower, generation, partition, key, position) do update
  set state = excluded.state, fingerprint = excluded.fingerprint, error = excluded.error, attempts = d.attempts + 1,
    failed_at = excluded.failed_at,
    next_attempt_at = clock_timestamp() + make_interval(secs => ($16::double precision[])[d.attempts + 1])
)
select exists (select from moved)
