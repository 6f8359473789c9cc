-- Records that a follower left events out by itself.
--
--   $1 follower    text
--   $2 generation  bigint
--   $3 partition   integer
--   one element an event:
--   $4 position    bigint[]
--   $5 key         text[]
--   $6 reason      text[]
insert into annals.dead_letters (follower, generation, partition, position, by_stream, key, state, discarded_by, discarded_at, reason)
select $1, $2, $3, s.position, false, s.key, 'discarded', $1, clock_timestamp(), s.reason
from unnest($4::bigint[], $5::text[], $6::text[]) as s(position, key, reason)
on conflict do nothing
