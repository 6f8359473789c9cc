-- Lists the circuit breakers of every process that is alive.
--
-- Returns (target text, process text, pid integer, state text, failures integer, last_error text, open_until timestamptz, changed_at
-- timestamptz, ordered_by text, reason text): the last two of an order that holds it open.
select b.target, p.name, p.pid, b.state, b.failures, b.last_error, b.open_until, b.changed_at, o.actor, o.reason
from annals.breakers b
join annals.processes p on p.process_id = b.process_id and p.alive_until > statement_timestamp()
left join annals.breaker_orders o on o.target = b.target and o.opens
order by b.target, p.name, p.pid
