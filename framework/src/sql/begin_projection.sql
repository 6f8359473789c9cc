-- Moves a projector's checkpoint, if it stands where it must, and lets the SQL that follows in this transaction find the
-- projector's tables by their bare names.
--
--   $1 follower     text
--   $2 generation   bigint
--   $3 from         bigint
--   $4 to           bigint
--   $5 search_path  text
--
-- Returns (moved boolean, transaction text): whether the checkpoint moved, and in which transaction.
with moved as (
  update annals.checkpoints
  set position = $4, moved_at = clock_timestamp(), attempts = 0, last_error = null, failed_position = null,
    next_attempt_at = null
  where follower = $1 and generation = $2 and partition = 0 and position = $3
  returning 1
),
placed as (
  update read_model._position set position = $4 where partition = 0 and exists (select from moved)
)
select exists (select from moved) and set_config('search_path', $5, true) is not null as moved,
  pg_current_xact_id()::text as transaction
