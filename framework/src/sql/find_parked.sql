-- Tells which keys of a partition are parked: by probes of the index for each, however the table has grown since the plan was
-- made.
--
--   $1 follower    text
--   $2 generation  bigint
--   $3 partition   integer
--   $4 keys        text[]
--
-- Returns (key text, by_stream boolean), each once.
select asked.key, way.by_stream
from unnest($4::text[]) as asked(key)
cross join (values (true), (false)) as way(by_stream)
cross join lateral (
  select from annals.dead_letters d
  where d.follower = $1 and d.generation = $2 and d.partition = $3 and d.key = asked.key and d.by_stream = way.by_stream
    and d.state <> 'discarded'
  limit 1
) as found
