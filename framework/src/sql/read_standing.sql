-- Reads where a stream stood: its last event at or below a version and a position.
--
--   $1 stream    text
--   $2 version   bigint
--   $3 position  bigint
--
-- Returns (version bigint, position bigint); no row if it had no events.
select version, position
from annals.events
where stream = $1 and version <= $2 and position <= $3
order by version desc
limit 1
