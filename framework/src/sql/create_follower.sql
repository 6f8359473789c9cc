-- Enters a new follower, which starts before the first event. Its generation is one that no follower of the name has had:
-- to a process that still runs the one before, the checkpoint is not where it left it.
--
--   $1 name        text
--   $2 kind        text
--   $3 version     integer
--   $4 categories  text[]   the stream categories that it reads
with follower as (
  insert into annals.followers (name, kind, version, categories, generation)
  values ($1, $2, $3, $4, (extract(epoch from clock_timestamp()) * 1000000)::bigint)
  returning name, generation, version
)
insert into annals.checkpoints (follower, generation, version) select name, generation, version from follower
