-- Reads the position of the last event at or below a position.
--
--   $1 up_to  bigint
--
-- Returns (bigint); null if there is none.
select max(position) from annals.events where position <= $1
