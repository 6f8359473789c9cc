-- Reads what a follower was when it was set up.
--
--   $1 name  text
--
-- Returns (kind text, version integer).
select kind, version from annals.followers where name = $1
