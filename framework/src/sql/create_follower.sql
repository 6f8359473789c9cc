-- Enters a new follower, which starts before the first event.
--
--   $1 name     text
--   $2 kind     text
--   $3 version  integer
with follower as (
  insert into annals.followers (name, kind, version) values ($1, $2, $3) returning name, generation
)
insert into annals.checkpoints (follower, generation) select name, generation from follower
