-- Looks for the events of an append whose outcome was not learned, by id.
--
--   $1 stream    text
--   $2 event_id  uuid[]
--
-- Returns (event_id, version, position) of those that are there.
select event_id, version, position
from annals.events
where stream = $1 and event_id = any ($2)
