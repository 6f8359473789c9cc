-- Takes a key's events out that have taken effect, and lets the next one be tried at once.
--
--   $1 follower    text
--   $2 generation  bigint
--   $3 partition   integer
--   $4 key         text
--   $5 by_stream   boolean
--   $6 up_to       bigint   inclusive
with gone as (
  delete from annals.dead_letters
  where follower = $1 and generation = $2 and partition = $3 and key = $4 and by_stream = $5 and position <= $6
    and state <> 'discarded'
)
update annals.dead_letters d set next_attempt_at = clock_timestamp()
from (
  select n.position from annals.dead_letters n
  where n.follower = $1 and n.generation = $2 and n.partition = $3 and n.key = $4 and n.by_stream = $5 and n.position > $6
    and n.state <> 'discarded'
  order by n.position limit 1
) as next
where d.follower = $1 and d.generation = $2 and d.partition = $3 and d.key = $4 and d.position = next.position
