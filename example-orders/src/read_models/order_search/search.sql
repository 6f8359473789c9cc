-- The orders that hold every word, newest first.
--
--   $1 words text     as a person types them
--   $2 limit bigint
--
-- Returns (id, customer, placed_at, status, lines, amount_cents, products).
select id, customer, placed_at, status, lines, amount_cents, products
from annals_order_search.orders
where to_tsvector('simple', products) @@ websearch_to_tsquery('simple', $1)
order by placed_at desc, id
limit $2
