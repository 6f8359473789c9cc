-- Lists keys of a partition that are parked.
--
--   $1 follower    text
--   $2 generation  bigint
--   $3 partition   integer
--   $4 limit       bigint
--
-- Returns (key text, by_stream boolean), each once.
select distinct key, by_stream from annals.dead_letters
where follower = $1 and generation = $2 and partition = $3 and state <> 'discarded'
limit $4
