-- Reads what was ordered about targets since.
--
--   $1 after  bigint  the last order that is known
--
-- Returns (order_id bigint, target text, opens boolean), in the order of the orders.
select o.order_id, o.target, o.opens from annals.breaker_orders o where o.order_id > $1 order by o.order_id
