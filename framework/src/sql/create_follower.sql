-- Enters a new follower, which starts before the first event.
--
--   $1 name        text
--   $2 kind        text
--   $3 version     integer
--   $4 categories  text[]   the stream categories that it reads
with follower as (
  insert into annals.followers (name, kind, version, categories) values ($1, $2, $3, $4)
  returning name, generation, version
)
insert into annals.checkpoints (follower, generation, version) select name, generation, version from follower
