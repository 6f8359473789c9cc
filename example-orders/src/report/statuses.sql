-- How many orders are where, from the projector order_search.
--
--   $1 limit bigint
--
-- Returns (name, count, amount_cents): the status, and how many orders.
select status as name, count(*) as count, sum(amount_cents)::bigint as amount_cents
from annals_order_search.orders
group by status
order by count desc, name
limit $1
