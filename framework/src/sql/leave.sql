-- Gives up everything: this process ends, or one of this machine has ended without saying so.
--
--   $1 process_ids  uuid[]
with gone as (
  delete from annals.processes where process_id = any ($1) returning process_id
)
update annals.checkpoints c set owner = null, owned_at = null, fence = c.fence + 1 where c.owner = any ($1)
