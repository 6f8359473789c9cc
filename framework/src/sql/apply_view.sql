-- Stores what a batch of events did to a view's documents, and moves its checkpoint, if that stands where it must.
--
--   $1 follower    text
--   $2 generation  bigint
--   $3 from        bigint
--   $4 to          bigint
--   $5 keys        text[]   documents to store
--   $6 documents   text[]
--   $7 removed     text[]   documents to remove
--
-- Returns (boolean): whether the checkpoint moved. If it did not, nothing was changed.
with moved as (
  update annals.checkpoints
  set position = $4, moved_at = clock_timestamp(), attempts = 0, last_error = null, failed_position = null,
    next_attempt_at = null
  where follower = $1 and generation = $2 and partition = 0 and position = $3
  returning 1
),
placed as (
  update read_model._position set position = $4 where partition = 0 and exists (select from moved)
),
removed as (
  delete from read_model.documents where key = any ($7::text[]) and exists (select from moved)
),
stored as (
  insert into read_model.documents (key, document)
  select n.key, n.document::jsonb from unnest($5::text[], $6::text[]) as n(key, document)
  where exists (select from moved)
  on conflict (key) do update set document = excluded.document
)
select exists (select from moved)
