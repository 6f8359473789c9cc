-- Moves orders on. Each order is named at most once.
--
--   $1 id     text[]
--   $2 status text[]
update orders
set status = changed.status
from unnest($1::text[], $2::text[]) as changed (id, status)
where orders.id = changed.id
