-- Enters a new build of a follower's model, and the follower itself if it is new.
--
--   $1 name          text
--   $2 kind          text
--   $3 definition    text      what recognises it under another name
--   $4 generation    bigint    one that no model of the name has had (lock_follower.sql)
--   $5 version       integer
--   $6 purpose       text
--   $7 schema_name   text
--   $8 categories    text[]    the stream categories that it reads
--   $9 skips         text[]    the event types among them that it does not want
--   $10 partitions   integer
--   $11 pace         double precision  events a second at most; null for a share of the time
--   $12 requested_by text
--   $13 indexed      boolean   whether it has its own indexes
--   $14 begin        bigint    where its partitions begin
with follower as (
  insert into annals.followers (name, kind, definition) values ($1, $2, $3)
  on conflict (name) do update set definition = excluded.definition
  returning name
),
generation as (
  insert into annals.generations
    (follower, generation, version, purpose, schema_name, categories, skips, partitions, pace, requested_by, indexed)
  select name, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13 from follower
  returning follower, generation, version, partitions
)
insert into annals.checkpoints (follower, generation, partition, version, position, counted_after)
select follower, generation, partition, version, $14, $14 from generation, generate_series(1, partitions) as partition
