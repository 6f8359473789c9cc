-- Shows that this process is alive, and what it does.
--
--   $1 process_id  uuid
--   $2 name        text
--   $3 host        text
--   $4 pid         integer
--   $5 runs        text[]            name:version of the followers that it can run
--   $6 work        text              JSON: what each owned partition does
--   $7 lease_s     double precision  how long that holds
insert into annals.processes (process_id, name, host, pid, runs, work, may_build, alive_until)
values ($1, $2, $3, $4, $5, $6::jsonb, has_database_privilege(current_database(), 'create'),
  clock_timestamp() + make_interval(secs => $7))
on conflict (process_id) do update set work = excluded.work, alive_until = excluded.alive_until
