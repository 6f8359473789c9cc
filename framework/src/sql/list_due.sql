-- Lists keys of a partition whose first parked event is to be tried again now.
--
--   $1 follower    text
--   $2 generation  bigint
--   $3 partition   integer
--   $4 limit       bigint
--
-- Returns (key text, by_stream boolean, position bigint, attempts integer), the longest due first.
select key, by_stream, position, attempts from annals.dead_letters
where next_attempt_at <= clock_timestamp() and follower = $1 and generation = $2 and partition = $3 and state <> 'discarded'
order by next_attempt_at
limit $4
