-- Reads the version that a stream had at a position.
--
--   $1 stream    text
--   $2 position  bigint
--
-- Returns (bigint); null if it had no events.
select max(version) from annals.events where stream = $1 and position <= $2
