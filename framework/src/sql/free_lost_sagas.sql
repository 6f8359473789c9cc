-- Frees what this process owns and does not run: it began or took it, and never learned that it did.
--
--   $1 process_id  uuid
--   $2 running     text[]            what it runs
--   $3 after_s     double precision  how long an answer may be on its way
update annals.sagas s
set owner = null, due_at = statement_timestamp(), interrupted = true
where s.owner = $1 and s.owned_at < statement_timestamp() - make_interval(secs => $3) and not s.stream = any ($2)
