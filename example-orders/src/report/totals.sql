-- What all customers have bought, from the view customer_spend.
--
-- Returns (orders, lines, amount_cents, customers).
select coalesce(sum((document->>'orders')::bigint), 0)::bigint as orders,
       coalesce(sum((document->>'lines')::bigint), 0)::bigint as lines,
       coalesce(sum((document->>'amount_cents')::bigint), 0)::bigint as amount_cents,
       count(*) as customers
from annals_customer_spend.documents
