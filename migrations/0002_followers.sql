-- Followers in several processes and partitions, failing events that keep their order, rebuilds, and control over all of it.
--
-- Needs builds that know it: partitions are counted from 1 on, so that one that does not finds no checkpoint to move.

-- Which partition a key belongs to, 1 to `partitions`: fixed for ever, and the same in Rust (subscription/partition.rs).
create function annals.partition_of(key text, partitions integer) returns integer
  language sql immutable strict parallel safe as
$$ select (('x' || left(encode(sha256(convert_to(key, 'UTF8')), 'hex'), 8))::bit(32)::bigint % partitions)::integer + 1 $$;

-- One build of a follower's model: the one that is live, one that is being made beside it, or one that it was.
create table annals.generations (
  follower          text        not null collate "C",
  generation        bigint      not null,
  version           integer     not null,
  purpose           text        not null,
  schema_name       text        not null collate "C",
  categories        text[]      not null,
  skips             text[]      not null default '{}',
  partitions        integer     not null default 1,
  target_partitions integer,    -- while their number changes
  state             text        not null default 'running',
  reason            text,       -- of the state
  indexed           boolean     not null default false, -- its own indexes are made after the load
  pace              double precision, -- events a second at most; null for a share of the time
  requested_by      text,
  created_at        timestamptz not null default clock_timestamp(),
  state_at          timestamptz not null default clock_timestamp(),
  constraint generations_key primary key (follower, generation),
  constraint generations_purpose_check check (purpose in ('live', 'rebuild', 'verify', 'retired')),
  constraint generations_state_check check (state in ('running', 'paused', 'halted')),
  constraint generations_partitions_check check (partitions between 1 and 1024 and target_partitions between 1 and 1024)
);
create unique index generations_live_key on annals.generations (follower) where purpose = 'live';
create unique index generations_rebuild_key on annals.generations (follower) where purpose = 'rebuild';

insert into annals.generations (follower, generation, version, purpose, schema_name, categories, indexed)
select f.name, f.generation, f.version, 'live', store.name || '_' || f.name, f.categories, true
from annals.followers f,
  (select n.nspname as name from pg_class c join pg_namespace n on n.oid = c.relnamespace
   where c.oid = 'annals.events'::regclass) as store;

-- What recognises a follower that was given another name.
alter table annals.followers
  add column definition text,
  -- A rebuild that somebody asked for, until a process that has the code begins it.
  add column rebuild_requested_at timestamptz,
  add column rebuild_requested_by text,
  add column rebuild_reason       text,
  add column rebuild_pace         double precision;
alter table annals.followers drop column version, drop column generation, drop column categories;

-- `fence` is compared with the position: whatever an owner must know of, a new owner above all, moves it on.
alter table annals.checkpoints
  add column fence         bigint not null default 1,
  add column owner         uuid,
  add column owned_at      timestamptz,
  add column drain_to      bigint, -- where it stops, if it is to stop anywhere
  -- (event, key) pairs in scope behind `counted_after`: every one is applied, parked or discarded.
  add column counted_after bigint not null default 0,
  add column pairs         bigint not null default 0,
  add column applied       bigint not null default 0,
  add column parked        bigint not null default 0,
  add column discarded     bigint not null default 0,
  alter column partition drop default;
update annals.checkpoints set partition = 1, counted_after = position;
do $$
declare
  model text;
begin
  for model in select g.schema_name from annals.generations g where to_regclass(format('%I._position', g.schema_name)) is not null
  loop
    execute format('update %I._position set partition = 1', model);
  end loop;
end $$;
alter table annals.checkpoints
  drop constraint checkpoints_position_check,
  add constraint checkpoints_position_check check (position >= 0 and partition >= 1);

-- The processes that may own followers. One that has not been heard of until `alive_until` owns nothing any more.
create table annals.processes (
  process_id  uuid        not null,
  name        text        not null,
  host        text        not null,
  pid         integer     not null,
  started_at  timestamptz not null default clock_timestamp(),
  alive_until timestamptz not null,
  may_build   boolean     not null,
  runs        text[]      not null, -- name:version
  work        jsonb       not null default '[]', -- what each owned partition does
  constraint processes_key primary key (process_id)
) with (fillfactor = 50);

-- Events that a follower could not apply, and those of the same key that wait behind them. The events themselves are in
-- the log. Rows of a discarded event stay for ever.
create table annals.dead_letters (
  follower        text        not null collate "C",
  generation      bigint      not null,
  partition       integer     not null,
  position        bigint      not null,
  by_stream       boolean     not null, -- the key is the stream, though the model has keys of its own: they are not known
  attempts        integer     not null default 0,
  key             text        not null collate "C",
  state           text        not null,
  fingerprint     text,
  error           text,
  parked_at       timestamptz not null default clock_timestamp(),
  failed_at       timestamptz,
  next_attempt_at timestamptz,
  discarded_by    text,
  discarded_at    timestamptz,
  reason          text,
  constraint dead_letters_key primary key (follower, generation, partition, key, position),
  constraint dead_letters_state_check check (state in ('failed', 'queued', 'discarded'))
);
create index dead_letters_due on annals.dead_letters (follower, generation, partition, next_attempt_at)
  where next_attempt_at is not null;
create index dead_letters_fingerprint on annals.dead_letters (follower, fingerprint) where state = 'failed';

-- Whatever somebody did to a follower.
create table annals.actions (
  action_id  bigint      not null generated always as identity,
  follower   text        not null collate "C",
  generation bigint,
  action     text        not null,
  actor      text        not null,
  reason     text,
  details    json,
  acted_at   timestamptz not null default clock_timestamp(),
  constraint actions_key primary key (action_id)
);
create index actions_follower on annals.actions (follower, action_id);
create trigger refuse_change before update or delete or truncate on annals.actions
  for each statement execute function annals.refuse_change();
alter table annals.actions enable always trigger refuse_change;

-- How far every follower has come, for dashboards. `seconds_behind` is the age of the next event of the log.
create view annals.lag as
select c.follower, g.version, g.purpose, c.generation, c.partition, g.partitions,
  case when g.state <> 'running' then g.state when p.process_id is null then 'unowned'
    when c.attempts > 0 then 'retrying' else 'running' end as state,
  coalesce(g.reason, c.last_error) as reason,
  c.position, greatest(log.last - c.position, 0) as behind,
  coalesce(extract(epoch from clock_timestamp() - (
    select e.recorded_at from annals.events e where e.position > c.position order by e.position limit 1)), 0)::double precision
    as seconds_behind,
  work.rate,
  case when work.rate > 0 then (greatest(log.last - c.position, 0) / work.rate)::double precision end as seconds_to_catch_up,
  c.pairs, c.applied, c.parked, c.discarded, c.failed_position, c.attempts, c.next_attempt_at, c.moved_at,
  p.name as owner, p.host, p.pid, c.owned_at
from annals.checkpoints c
join annals.generations g on g.follower = c.follower and g.generation = c.generation
cross join (select coalesce((select e.position from annals.events e order by e.position desc limit 1), 0) as last) as log
left join annals.processes p on p.process_id = c.owner and p.alive_until > clock_timestamp()
left join lateral (
  select (w->>'rate')::double precision as rate from jsonb_array_elements(p.work) as w
  where w->>'follower' = c.follower and (w->>'generation')::bigint = c.generation and (w->>'partition')::integer = c.partition
) as work on true;

-- The roles, where the store has them (sql/create_roles.sql), may use what is new.
do $$
declare
  mark text := (select format('annals %s %s', current_database(), n.nspname)
                from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = 'annals.events'::regclass);
  thing record;
begin
  for thing in
    select rolname as role, right(rolname, 7) = '_writer' as writes from pg_roles
    where shobj_description(oid, 'pg_authid') = mark and right(rolname, 7) in ('_writer', '_reader')
  loop
    execute format('grant select on annals.generations, annals.processes, annals.dead_letters, annals.actions, annals.lag to %I',
      thing.role);
    if thing.writes then
      execute format('grant insert, update, delete on annals.followers, annals.checkpoints, annals.generations, '
        || ' annals.processes, annals.dead_letters to %I', thing.role);
      execute format('grant insert on annals.actions to %I', thing.role);
    end if;
  end loop;
end $$;

update annals.store set minimum_reader = 2;
