-- The store: the log and its guards, command ids, snapshots, followers and their checkpoints.
--
-- Runs in one transaction, in a schema that the migrator has made with its own two tables. `annals.` stands for that schema.

-- CACHE 1 and no cycle: the in-flight marker (framework/src/store/marker.rs) relies on both.
-- It begins with a last value, so that the marker has something to read from the first append on.
create sequence annals.positions as bigint minvalue 0 start 1 cache 1 no cycle;
select pg_catalog.setval('annals.positions', 0);

-- `json`, not `jsonb`: what is read back is byte for byte what was appended.
create table annals.events (
  position       bigint      not null default nextval('annals.positions'),
  version        bigint      not null,
  event_id       uuid        not null,
  correlation_id uuid        not null,
  causation_id   uuid,
  command_id     uuid,
  recorded_at    timestamptz not null default clock_timestamp(),
  schema_version smallint    not null default 1,
  stream         text        not null collate "C",
  event_type     text        not null collate "C",
  actor          text,
  traceparent    text,
  payload        json        not null,
  constraint events_position_key primary key (position),
  constraint events_stream_version_key unique (stream, version),
  constraint events_version_check check (version > 0),
  constraint events_schema_version_check check (schema_version > 0),
  constraint events_event_type_check check (event_type <> ''),
  constraint events_stream_check check (octet_length(stream) between 1 and 255)
);
alter sequence annals.positions owned by annals.events.position;
create index events_correlation_id on annals.events (correlation_id);
-- Event ids grow with time (UUID v7), so a summary of page ranges finds one and costs next to nothing to keep. Several
-- ranges a summary: an id of another kind here and there does no harm.
create index events_event_id on annals.events using brin (event_id uuid_minmax_multi_ops)
  with (pages_per_range = 16, autosummarize = on);

-- The in-flight marker: before any row draws a position, the transaction shows a bound below all it will draw.
-- The promise and its proof: framework/src/store/marker.rs.
create function annals.mark_in_flight() returns trigger language plpgsql as $$
declare
  transaction text := pg_catalog.pg_current_xact_id()::text;
  bound bigint;
begin
  if pg_catalog.current_setting('annals.marker', true) is distinct from transaction then
    -- Without a last value, which is how `setval(.., false)` leaves it, a number that is drawn and left out is a bound.
    bound := coalesce(pg_catalog.pg_sequence_last_value('annals.positions'), pg_catalog.nextval('annals.positions'));
    perform pg_catalog.pg_advisory_xact_lock_shared(tg_relid::bigint::bit(32)::integer, bound::bit(32)::integer);
    perform pg_catalog.set_config('annals.marker', transaction, true);
  end if;
  return null;
end $$;
create trigger mark_in_flight before insert on annals.events
  for each statement execute function annals.mark_in_flight();
alter table annals.events enable always trigger mark_in_flight;

-- Append-only: what is written stays.
create function annals.refuse_change() returns trigger language plpgsql as $$
begin
  raise exception '%.% is append-only: % is refused', tg_table_schema, tg_table_name, lower(tg_op)
    using errcode = 'restrict_violation',
          hint = 'A fact that was wrong is corrected by a new event.';
end $$;
create trigger refuse_change before update or delete or truncate on annals.events
  for each statement execute function annals.refuse_change();
alter table annals.events enable always trigger refuse_change;

-- What a command id led to. As old as its stream: a repeat is recognised for ever.
create table annals.commands (
  command_id  uuid        not null,
  version     bigint      not null,
  position    bigint      not null,
  recorded_at timestamptz not null default clock_timestamp(),
  stream      text        not null collate "C",
  body        bytea,      -- what it stood for (execute/mod.rs, `record`); null where the framework made the id
  constraint commands_command_id_key primary key (command_id),
  constraint commands_body_check check (octet_length(body) between 1 and 64)
);
create trigger refuse_change before update or delete or truncate on annals.commands
  for each statement execute function annals.refuse_change();
alter table annals.commands enable always trigger refuse_change;

-- The latest state of a long stream, one for each shape of the state, so that the builds of a rolling deploy keep theirs.
-- A cache: any row may be deleted.
create table annals.snapshots (
  stream           text        not null collate "C",
  version          bigint      not null,
  snapshot_version integer     not null,
  saved_at         timestamptz not null default clock_timestamp(),
  state            json        not null,
  constraint snapshots_stream_key primary key (stream, snapshot_version)
);

-- Every follower that ever ran on this store, the generation that is live, and the stream categories that it has read: a
-- model that reads others from now on would lack their past.
create table annals.followers (
  name        text        not null collate "C",
  kind        text        not null,
  version     integer     not null,
  generation  bigint      not null default 1,
  categories  text[]      not null,
  created_at  timestamptz not null default clock_timestamp(),
  constraint followers_name_key primary key (name)
);

-- How far each follower has come. Compared and set in the transaction that does the work: it is the fence.
create table annals.checkpoints (
  follower        text        not null collate "C",
  generation      bigint      not null,
  partition       integer     not null default 0,
  version         integer     not null,
  position        bigint      not null default 0,
  moved_at        timestamptz not null default clock_timestamp(),
  attempts        integer     not null default 0,
  last_error      text,
  failed_position bigint,
  next_attempt_at timestamptz,
  constraint checkpoints_key primary key (follower, generation, partition),
  constraint checkpoints_position_check check (position >= 0 and partition >= 0),
  constraint checkpoints_follower_key foreign key (follower) references annals.followers (name)
) with (fillfactor = 50);
