-- Lists what was done to followers, the latest first.
--
--   $1 follower  text    null for all
--   $2 limit     bigint
--
-- Returns (follower text, action text, actor text, reason text, details json, acted_at timestamptz).
select follower, action, actor, reason, details, acted_at from annals.actions
where $1::text is null or follower = $1
order by action_id desc
limit $2
