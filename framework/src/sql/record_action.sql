-- Records what somebody did to a follower.
--
--   $1 follower    text
--   $2 generation  bigint
--   $3 action      text
--   $4 actor       text
--   $5 reason      text
--   $6 details     text    JSON
insert into annals.actions (follower, generation, action, actor, reason, details) values ($1, $2, $3, $4, $5, $6::json)
