-- Retires what was built to compare by processes that are gone.
with lost as (
  select g.follower, g.generation from annals.generations g
  where g.purpose = 'verify' and g.created_at < clock_timestamp() - interval '10 seconds' and not exists (
    select from annals.checkpoints c join annals.processes p on p.process_id = c.owner
    where c.follower = g.follower and c.generation = g.generation and p.alive_until > clock_timestamp())
),
checkpoints as (
  delete from annals.checkpoints c using lost where (c.follower, c.generation) = (lost.follower, lost.generation)
),
letters as (
  delete from annals.dead_letters d using lost where (d.follower, d.generation) = (lost.follower, lost.generation)
)
update annals.generations g set purpose = 'retired', state_at = clock_timestamp()
from lost where (g.follower, g.generation) = (lost.follower, lost.generation)
