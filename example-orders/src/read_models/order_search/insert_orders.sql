-- Inserts new orders.
--
--   $1 id             text[]
--   $2 customer       bigint[]
--   $3 store          bigint[]
--   $4 placed_at      timestamptz[]
--   $5 status         text[]
--   $6 lines          bigint[]
--   $7 amount_cents   bigint[]
--   $8 discount_cents bigint[]
--   $9 products       text[]
insert into orders (id, customer, store, placed_at, status, lines, amount_cents, discount_cents, products)
select *
from unnest($1::text[], $2::bigint[], $3::bigint[], $4::timestamptz[], $5::text[], $6::bigint[], $7::bigint[], $8::bigint[],
  $9::text[])
