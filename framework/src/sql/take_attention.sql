-- Takes what is stuck and of which nobody was told.
--
--   $1 sagas  text[]
--
-- Returns (stream text, saga text, step text, reason text).
update annals.sagas s set told_at = clock_timestamp()
from (
  select t.stream from annals.sagas t where t.saga = any ($1) and t.state = 'stuck' and t.told_at is null
  order by t.stream limit 100 for update skip locked) as taken
where s.stream = taken.stream
returning s.stream, s.saga, s.step, s.reason
