-- Lists how far every partition of every follower has come: the view `lag`.
--
-- Returns its columns, and (kind text): what the follower is.
select f.kind, follower, version, purpose, generation, partition, partitions, state, reason, position, behind, seconds_behind, rate,
  seconds_to_catch_up, pairs, applied, parked, discarded, failed_position, attempts, next_attempt_at, moved_at, owner, host,
  pid, owned_at
from annals.lag join annals.followers f on f.name = follower
order by follower, purpose, generation, partition
