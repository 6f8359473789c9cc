-- Deletes what is known of a generation whose schema is gone.
--
--   $1 follower    text
--   $2 generation  bigint
delete from annals.generations where follower = $1 and generation = $2 and purpose = 'retired'
