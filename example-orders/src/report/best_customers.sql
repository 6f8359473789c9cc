-- The customers who spent most, from the view customer_spend.
--
--   $1 limit bigint
--
-- Returns (name, count, amount_cents): the customer, and how many orders.
select key as name, (document->>'orders')::bigint as count, (document->>'amount_cents')::bigint as amount_cents
from annals_customer_spend.documents
order by (document->>'amount_cents')::bigint desc, key
limit $1
