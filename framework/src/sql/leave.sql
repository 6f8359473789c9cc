-- Gives up everything but what a batch holds at the moment, which is taken later: this process ends, or one of this machine has ended without saying so.
--
--   $1 process_ids  uuid[]
with gone as (
  delete from annals.processes where process_id = any ($1) returning process_id
)
update annals.checkpoints c set owner = null, owned_at = null, fence = c.fence + 1
from (select k.ctid as place from annals.checkpoints k where k.owner = any ($1) for update skip locked) as free
where c.ctid = free.place
