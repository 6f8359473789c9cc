-- Lists which of these followers are paused.
--
--   $1 names  text[]
--
-- Returns (text).
select g.follower from annals.generations g where g.purpose = 'live' and g.state = 'paused' and g.follower = any ($1)
