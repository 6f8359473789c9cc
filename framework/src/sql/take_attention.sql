-- Takes what is stuck and of which nobody was told. Whoever takes it has half a minute to tell (told_attention.sql).
--
--   $1 sagas  text[]
--
-- Returns (stream text, saga text, step text, reason text, version bigint).
update annals.sagas s set telling_until = clock_timestamp() + interval '30 seconds'
from (
  select t.stream from annals.sagas t
  where t.saga = any ($1) and t.state = 'stuck' and t.told_at is null
    and (t.telling_until is null or t.telling_until < statement_timestamp())
  order by t.stream limit 100 for update skip locked) as taken
where s.stream = taken.stream
returning s.stream, s.saga, s.step, s.reason, s.version
