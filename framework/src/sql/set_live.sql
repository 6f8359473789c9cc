-- The last step of a swap, when no other generation is live. No row changes if the rebuild was cancelled meanwhile.
--
--   $1 follower    text
--   $2 generation  bigint
--   $3 schema      text
--   $4 old         bigint  the generation that was live: paused, so is this one
update annals.generations g
set purpose = 'live', schema_name = $3, state_at = clock_timestamp(),
  state = case when o.state = 'paused' then o.state else g.state end,
  reason = case when o.state = 'paused' then o.reason else g.reason end
from annals.generations o
where o.follower = $1 and o.generation = $4 and g.follower = $1 and g.generation = $2 and g.purpose = 'rebuild'
