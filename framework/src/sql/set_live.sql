-- The last step of a swap, when no other generation is live. No row changes if the rebuild was cancelled meanwhile.
--
--   $1 follower    text
--   $2 generation  bigint
--   $3 schema      text
update annals.generations set purpose = 'live', schema_name = $3, state_at = clock_timestamp()
where follower = $1 and generation = $2 and purpose = 'rebuild'
