-- Reads what a follower was when it was set up.
--
--   $1 name  text
--
-- Returns (kind text, version integer, categories text[]).
select kind, version, categories from annals.followers where name = $1
