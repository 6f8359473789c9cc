-- Moves the checkpoint of a projector's partition, if that stands where it must, and lets the SQL that follows in this
-- transaction find the projector's tables by their bare names.
--
--   $1 follower     text
--   $2 generation   bigint
--   $3 partition    integer
--   $4 fence        bigint
--   $5 from         bigint
--   $6 to           bigint
--   $7 counts       bigint[] pairs, applied, parked, discarded: by how much each grows
--   $8 search_path  text
--   $9 owner        uuid     whoever takes over from a stopped process ends its transactions (end_batches.sql)
--
-- Returns (moved boolean, transaction text): whether the checkpoint moved, and in which transaction.
with moved as (
  update annals.checkpoints
  set position = $6, fence = fence + case when $5::bigint = $6::bigint then 1 else 0 end,
    moved_at = clock_timestamp(), attempts = 0, last_error = null, failed_position = null, next_attempt_at = null, pairs = pairs + ($7::bigint[])[1], applied = applied + ($7::bigint[])[2],
    parked = parked + ($7::bigint[])[3], discarded = discarded + ($7::bigint[])[4]
  where follower = $1 and generation = $2 and partition = $3 and fence = $4 and position = $5
  returning 1
),
placed as (
  update read_model._position set position = $6 where partition = $3 and exists (select from moved)
)
select exists (select from moved) and set_config('search_path', $8, true) is not null as moved,
  pg_current_xact_id()::text as transaction,
  pg_advisory_xact_lock_shared('annals.checkpoints'::regclass::bigint::bit(32)::integer, hashtext($9::text))
