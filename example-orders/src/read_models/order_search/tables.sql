-- One row an order, whatever became of it.
create table orders (
    id             text primary key,
    customer       bigint not null,
    store          bigint not null,
    placed_at      timestamptz not null,
    status         text not null check (status in ('past', 'open', 'confirmed', 'shipped', 'cancelled', 'returned')),
    lines          bigint not null,
    amount_cents   bigint not null,
    discount_cents bigint not null, -- since version 2
    products       text not null
);
