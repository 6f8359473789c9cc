-- Takes the rebuild of a follower that somebody asked for, if there is one.
--
--   $1 follower  text
--
-- Returns (actor text, reason text, pace double precision).
with asked as (
  select name, rebuild_requested_by, rebuild_reason, rebuild_pace from annals.followers
  where name = $1 and rebuild_requested_at is not null for update
)
update annals.followers f
set rebuild_requested_at = null, rebuild_requested_by = null, rebuild_reason = null, rebuild_pace = null
from asked where f.name = asked.name
returning asked.rebuild_requested_by, asked.rebuild_reason, asked.rebuild_pace
