-- Lists keys of a partition whose first parked event is to be tried again now.
--
--   $1 follower    text
--   $2 generation  bigint
--   $3 partition   integer
--   $4 limit       bigint
--
-- Returns (key text, by_stream boolean, position bigint, attempts integer), the longest due first. Which event of a key is
-- the first, the primary key's index tells, whatever is parked beside it.
select d.key, d.by_stream, d.position, d.attempts from annals.dead_letters d
where d.next_attempt_at <= clock_timestamp() and d.follower = $1 and d.generation = $2 and d.partition = $3
  and d.state <> 'discarded' and d.position = (
    select e.position from annals.dead_letters e
    where e.follower = $1 and e.generation = $2 and e.partition = $3 and e.key = d.key and e.by_stream = d.by_stream
      and e.state <> 'discarded'
    order by e.position limit 1)
order by d.next_attempt_at
limit $4
