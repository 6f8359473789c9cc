-- Notes that a shadow has its indexes.
--
--   $1 follower    text
--   $2 generation  bigint
update annals.generations set indexed = true where follower = $1 and generation = $2
