-- Lists the dead letters that concern a key: its own, and those of streams whose events' keys are not known.
--
--   $1 follower    text
--   $2 generation  bigint
--   $3 partition   integer
--   $4 key         text
--
-- Returns (position bigint, by_stream boolean, discarded boolean).
select position, by_stream, state = 'discarded' from annals.dead_letters
where follower = $1 and generation = $2 and partition = $3 and (by_stream or key = $4)
order by position, by_stream
