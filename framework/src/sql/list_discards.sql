-- Lists what a shadow leaves out, because somebody discarded it.
--
--   $1 follower    text
--   $2 generation  bigint
--   $3 partition   integer
--   $4 after       bigint
--
-- Returns (position bigint, key text, by_stream boolean).
select position, key, by_stream from annals.dead_letters
where follower = $1 and generation = $2 and partition = $3 and state = 'discarded' and position > $4
