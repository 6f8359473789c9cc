-- Reads the last position at which an event stands. A later statement than that of the safe position.
--
--   $1 up_to  bigint  inclusive; never above the safe position
--
-- Returns (bigint); 0 if there is none.
select coalesce((select e.position from annals.events e where e.position <= $1 order by e.position desc limit 1), 0)
