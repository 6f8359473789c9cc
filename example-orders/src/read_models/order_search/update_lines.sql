-- Replaces what orders are made of. Each order is named at most once.
--
--   $1 id             text[]
--   $2 lines          bigint[]
--   $3 amount_cents   bigint[]
--   $4 discount_cents bigint[]
--   $5 products       text[]
update orders
set lines = changed.lines, amount_cents = changed.amount_cents, discount_cents = changed.discount_cents,
  products = changed.products
from unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[])
  as changed (id, lines, amount_cents, discount_cents, products)
where orders.id = changed.id
