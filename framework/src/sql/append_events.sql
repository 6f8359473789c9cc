-- Appends a batch: every append in it alone succeeds or is refused, all in one commit.
--
--   one element a stream of an append, no stream twice:
--   $1  stream          text[]
--   $2  expected        bigint[]   the version that the writer saw; negative: any
--   $3  append          integer[]  which append of the batch it belongs to
--   $4  appended        integer[]  how many events go to the stream
--   $5  correlation_id  uuid[]
--   $6  causation_id    uuid[]
--   $7  command_id      uuid[]
--   $8  actor           text[]
--   $9  traceparent     text[]
--   $10 records         boolean[]  whether the command id is recorded, with this stream as its stream
--   $11 body            bytea[]    what the command id stands for
--   one element an event, in the order in which they are to stand in the log:
--   $12 entry           integer[]  which element of $1, from 1
--   $13 ordinal         integer[]  which event of that element, from 1
--   $14 event_id        uuid[]
--   $15 event_type      text[]
--   $16 schema_version  smallint[]
--   $17 payload         text[]
--   what is to be found of instances of sagas whose streams are among those:
--   $18 sagas           text       JSON, an array of rows of annals.sagas: (entry, saga, definition, state, step, reason, due_at,
--                                  owner, writer); `entry` is the element of $1, `writer` who owns the row as far as it knows
--
-- Returns one row an element of $1, in order: (head bigint, position bigint, known boolean).
-- `head` is the stream's version before; an append is refused if one of its heads is not as expected, or if its command
-- id is `known`. `position` is that of the last event appended here; where none was to be appended, that of the stream's last
-- event; null if there is none.
with entry as materialized (
  select e.*,
    coalesce((select v.version from annals.events v where v.stream = e.stream order by v.version desc limit 1), 0) as head,
    e.records and (select c.version from annals.commands c where c.command_id = e.command_id) is not null as known
  from unnest($1::text[], $2::bigint[], $3::integer[], $4::integer[], $5::uuid[], $6::uuid[], $7::uuid[], $8::text[],
         $9::text[], $10::boolean[], $11::bytea[])
       with ordinality as e(stream, expected, append, appended, correlation_id, causation_id, command_id, actor,
         traceparent, records, body, nth)
),
refused as materialized (
  select append from entry where known or (expected >= 0 and expected <> head)
),
inserted as (
  insert into annals.events (version, event_id, correlation_id, causation_id, command_id, schema_version, stream,
    event_type, actor, traceparent, payload)
  select entry.head + event.ordinal, event.event_id, entry.correlation_id, entry.causation_id, entry.command_id,
    event.schema_version, entry.stream, event.event_type, entry.actor, entry.traceparent, event.payload::json
  from unnest($12::integer[], $13::integer[], $14::uuid[], $15::text[], $16::smallint[], $17::text[])
       with ordinality as event(entry, ordinal, event_id, event_type, schema_version, payload, nth)
  join entry on entry.nth = event.entry
  where entry.append not in (select append from refused)
  order by event.nth
  returning stream, position
),
last_position as materialized (
  select stream, max(position) as position from inserted group by stream
),
recorded as (
  insert into annals.commands (command_id, version, position, stream, body)
  select entry.command_id, entry.head + entry.appended,
    coalesce(
      (select max(p.position) from entry part join last_position p using (stream) where part.append = entry.append),
      (select max((select v.position from annals.events v where v.stream = part.stream order by v.version desc limit 1))
       from entry part where part.append = entry.append), 0),
    entry.stream, entry.body
  from entry
  where entry.records and entry.append not in (select append from refused)
),
saga as materialized (
  select entry.stream, entry.head, entry.head + entry.appended as version, entry.correlation_id, s.*
  from json_to_recordset($18::json) as s(entry integer, saga text, definition integer, state text, step text, reason text,
    due_at timestamptz, owner uuid, writer uuid)
  join entry on entry.nth = s.entry
  where entry.append not in (select append from refused)
),
saga_started as (
  insert into annals.sagas (stream, saga, definition, version, state, step, reason, correlation_id, owner,
    owned_at, due_at)
  select stream, saga, definition, version, state, step, reason, correlation_id, owner, clock_timestamp(), due_at from saga where head = 0
),
saga_moved as (
  -- What somebody else runs stays theirs.
  update annals.sagas s
  set definition = saga.definition, version = saga.version, state = saga.state, step = saga.step, reason = saga.reason,
    owner = case when s.owner is null or s.owner = saga.writer then saga.owner else s.owner end,
    due_at = case
      when saga.owner is not null then s.due_at
      -- That it was interrupted is told first, whatever somebody else has told it.
      when s.interrupted and s.owner is null and saga.writer is null then coalesce(s.due_at, saga.due_at)
      else saga.due_at end,
    interrupted = s.interrupted and coalesce(s.owner <> saga.writer, true),
    owned_at = case when s.owner = saga.owner then s.owned_at else clock_timestamp() end, waits_for = null, changed_at = clock_timestamp(),
    told_at = case when saga.state = 'stuck' and s.state = 'stuck' then s.told_at end,
    telling_until = null
  from saga
  -- With the names apart, the rows are looked up by their key, however many there are.
  where s.stream = any (array(select stream from saga where head > 0)) and saga.stream = s.stream
)
select entry.head,
  case when entry.appended > 0 then last_position.position
       else (select v.position from annals.events v where v.stream = entry.stream order by v.version desc limit 1) end
    as position,
  entry.known
from entry left join last_position using (stream)
order by entry.nth
