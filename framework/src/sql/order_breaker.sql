-- Has every process open the circuit of a target until it is closed, or close it.
--
--   $1 target  text
--   $2 opens   boolean
--   $3 actor   text
--   $4 reason  text
--
-- Returns (text): the target; no row if no process that is alive calls it.
insert into annals.breaker_orders (target, opens, actor, reason)
select $1, $2, $3, $4
where exists (
  select from annals.breakers b join annals.processes p using (process_id)
  where b.target = $1 and p.alive_until > statement_timestamp())
on conflict (target) do update
set order_id = default, opens = excluded.opens, actor = excluded.actor, reason = excluded.reason, ordered_at = statement_timestamp()
returning target
