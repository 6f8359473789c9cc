-- Lists keys of a partition that are parked.
--
--   $1 follower    text
--   $2 generation  bigint
--   $3 partition   integer
--   $4 limit       bigint
--
-- Returns (key text).
select distinct key from annals.dead_letters
where follower = $1 and generation = $2 and partition = $3 and state <> 'discarded'
limit $4
