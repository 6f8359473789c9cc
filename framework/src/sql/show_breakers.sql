-- Shows the circuit breakers of this process.
--
--   $1 process_id  uuid
--   one element a target:
--   $2 target      text[]
--   $3 state       text[]
--   $4 failures    integer[]
--   $5 last_error  text[]
--   $6 open_s      double precision[]  how long it stays open; null if it is not
insert into annals.breakers (process_id, target, state, failures, last_error, open_until, changed_at)
select $1, b.target, b.state, b.failures, b.last_error, statement_timestamp() + make_interval(secs => b.open_s), statement_timestamp()
from unnest($2::text[], $3::text[], $4::integer[], $5::text[], $6::double precision[])
  as b(target, state, failures, last_error, open_s)
on conflict (process_id, target) do update
set state = excluded.state, failures = excluded.failures, last_error = excluded.last_error, open_until = excluded.open_until,
  changed_at = excluded.changed_at
