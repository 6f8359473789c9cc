-- Lets a shadow leave out what another generation has left out, or has parked.
--
--   $1 follower  text
--   $2 from      bigint   the other generation
--   $3 to        bigint   the shadow
--   $4 states    text[]   which of its dead letters
insert into annals.dead_letters
  (follower, generation, partition, position, by_stream, attempts, key, state, fingerprint, error, parked_at, discarded_by,
   discarded_at, reason)
select follower, $3, partition, position, by_stream, attempts, key, 'discarded', fingerprint, error, parked_at, discarded_by,
  discarded_at, reason
from annals.dead_letters where follower = $1 and generation = $2 and state = any ($4)
on conflict do nothing
