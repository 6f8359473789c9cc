-- Lists instances of sagas, those that began first first. Not a statement as it stands: $chosen is a condition that says by which
-- index they are looked up (framework/src/saga/control.rs).
--
--   $1 saga            text         null for all
--   $2 states          text[]       null for all
--   $3 step            text         null for any
--   $4 correlation_id  uuid         null for any
--   $5 older_s         double precision  began at least so long ago; null for any
--   $6 id              text         a part of the instance's id; null for any
--   $7 after           timestamptz  behind this one, which began then; null for the first
--   $8 after_stream    text
--   $9 limit           bigint
--   $10 definition     integer      the version; null for any
--   $11 reason         text         a part of why it is stuck, or undoes; null for any
--
-- Returns (stream text, saga text, definition integer, version bigint, state text, step text, reason text, correlation_id uuid,
-- owner text, due_at timestamptz, waits_for text, started_at timestamptz, changed_at timestamptz, runs boolean: whether a process
-- that is alive has its version).
select s.stream, s.saga, s.definition, s.version, s.state, s.step, s.reason, s.correlation_id,
  p.name || ' (' || p.pid || ')' as owner, s.due_at,
  s.waits_for, s.started_at, s.changed_at,
  exists (
    select from annals.processes r where r.alive_until > statement_timestamp() and s.saga || ':' || s.definition = any (r.runs)
  ) as runs
from annals.sagas s
left join annals.processes p on p.process_id = s.owner
where $chosen and ($1::text is null or s.saga = $1) and ($2::text[] is null or s.state = any ($2))
  and ($3::text is null or $3 = any (string_to_array(s.step, ', ')))
  and ($4::uuid is null or s.correlation_id = $4)
  and ($5::double precision is null or s.started_at <= statement_timestamp() - make_interval(secs => $5))
  and ($6::text is null or position($6 in substr(s.stream, length(s.saga) + 3)) > 0)
  and ($10::integer is null or s.definition = $10)
  and ($11::text is null or position($11 in s.reason) > 0)
  and ($7::timestamptz is null or (s.started_at, s.stream) > ($7, $8))
order by s.started_at, s.stream
limit $9
