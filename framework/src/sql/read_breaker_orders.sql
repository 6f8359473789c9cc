-- Reads what was ordered about targets last: a row a target.
--
-- Returns (order_id bigint, target text, opens boolean).
select o.order_id, o.target, o.opens from annals.breaker_orders o order by o.order_id
