-- Lists how far every follower has come, as committed.
--
-- Returns (follower text, position bigint, attempts integer, last_error text, failed_position bigint,
-- next_attempt_at timestamptz).
select c.follower, c.position, c.attempts, c.last_error, c.failed_position, c.next_attempt_at
from annals.followers f
join annals.checkpoints c on c.follower = f.name and c.generation = f.generation
order by c.follower, c.partition
