-- Lets instances of sagas go on that wait for targets which answer again.
--
--   $1 targets  text[]
update annals.sagas s set due_at = statement_timestamp(), waits_for = null
where s.waits_for = any ($1) and s.owner is null and s.due_at is not null
