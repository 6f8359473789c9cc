create index on orders (customer, placed_at);
create index on orders (status) where status in ('open', 'confirmed');
create index on orders using gin (to_tsvector('simple', products));
create index on orders (discount_cents) where discount_cents > 0;
