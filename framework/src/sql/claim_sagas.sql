-- Takes instances of sagas that are due and that nobody runs, if this process is known to be alive.
--
--   $1 process_id   uuid
--   $2 saga         text[]     what this process can run
--   $3 definition   integer[]  in which versions
--   $4 limit        bigint
--
-- Returns (now timestamptz, next timestamptz: when the next one is due, stream text, interrupted boolean, alive
-- boolean: whether it is), a row an instance; one without a stream if there is none.
with runs as (
  select r.saga, r.definition from unnest($2::text[], $3::integer[]) as r(saga, definition)
  where not exists (
    select from annals.generations g where g.follower = r.saga and g.purpose = 'live' and g.state = 'paused')
),
due as (
  select d.stream from runs cross join lateral (
    select s.stream, s.due_at from annals.sagas s
    where s.saga = runs.saga and s.definition = runs.definition and s.owner is null and s.due_at <= statement_timestamp()
    order by s.due_at limit $4 for update skip locked) as d
  where exists (select from annals.processes p where p.process_id = $1 and p.alive_until > statement_timestamp())
  limit $4
),
claimed as (
  update annals.sagas s set owner = $1, owned_at = statement_timestamp(), waits_for = null from due where s.stream = due.stream
  returning s.stream, s.interrupted
)
select statement_timestamp() as now,
  (select min(n.due_at) from runs cross join lateral (
     select s.due_at from annals.sagas s
     where s.saga = runs.saga and s.definition = runs.definition and s.owner is null and s.due_at > statement_timestamp()
     order by s.due_at limit 1) as n) as next,
  claimed.stream, claimed.interrupted,
  exists (select from annals.processes p where p.process_id = $1 and p.alive_until > statement_timestamp()) as alive
from (select) as one left join claimed on true
