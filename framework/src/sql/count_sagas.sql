-- Counts the instances of every saga.
--
-- Returns (saga text, state text, count bigint).
select s.saga, s.state, count(*) from annals.sagas s group by s.saga, s.state order by s.saga, s.state
