-- Asks for a rebuild of a follower: a process that has its code begins it.
--
--   $1 follower  text
--   $2 actor     text
--   $3 reason    text
--   $4 pace      double precision  events a second at most; null for a share of the time
update annals.followers
set rebuild_requested_at = clock_timestamp(), rebuild_requested_by = $2, rebuild_reason = $3, rebuild_pace = $4
where name = $1
