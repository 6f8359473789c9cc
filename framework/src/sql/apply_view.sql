-- Stores what a batch of events did to a view's documents, and moves the partition's checkpoint, if that stands where it
-- must.
--
--   $1 follower    text
--   $2 generation  bigint
--   $3 partition   integer
--   $4 fence       bigint
--   $5 from        bigint
--   $6 to          bigint
--   $7 counts      bigint[] pairs, applied, parked, discarded: by how much each grows
--   $8 keys        text[]   documents to store
--   $9 documents   text[]
--   $10 removed    text[]   documents to remove
--
-- What follows it says what becomes of events that failed: apply_view_end.sql that there are none, apply_view_park.sql parks them.
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
),
removed as (
  delete from read_model.documents where key = any ($10::text[]) and exists (select from moved)
),
stored as (
  insert into read_model.documents (key, document)
  select n.key, n.document::jsonb from unnest($8::text[], $9::text[]) as n(key, document)
  where exists (select from moved)
  on conflict (key) do update set document = excluded.document
)
