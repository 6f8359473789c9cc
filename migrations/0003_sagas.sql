-- Sagas: what finds an instance, and when it is to be looked at. The instance itself is its stream.

-- Written in the statement that appends to the stream, so the two never differ.
create table annals.sagas (
  stream         text        not null collate "C", -- $<saga>-<id>
  saga           text        not null collate "C",
  definition     integer     not null, -- the version of the saga that runs it
  version        bigint      not null, -- of the stream
  state          text        not null,
  step           text,                 -- what it is at
  reason         text,                 -- why it is stuck, or was undone
  correlation_id uuid,
  -- The process that runs it; none while nobody does. Then it is due, or waits for something that is none of time's business.
  owner          uuid,
  owned_at       timestamptz,
  due_at         timestamptz,
  interrupted    boolean     not null default false, -- its owner was lost in the middle of something
  waits_for      text,                 -- whoever is not called at present
  started_at     timestamptz not null default clock_timestamp(),
  changed_at     timestamptz not null default clock_timestamp(),
  told_at        timestamptz,          -- when somebody was told that it is stuck
  telling_until  timestamptz,          -- until then, somebody is telling
  constraint sagas_key primary key (stream),
  constraint sagas_state_check check (state in ('early', 'running', 'undoing', 'stuck', 'completed', 'compensated'))
) with (fillfactor = 70);
create index sagas_due on annals.sagas (saga, definition, due_at) where owner is null and due_at is not null;
create index sagas_owner on annals.sagas (owner) where owner is not null;
create index sagas_untold on annals.sagas (saga) where state = 'stuck' and told_at is null;
create index sagas_started_at on annals.sagas (started_at, stream);
create index sagas_open on annals.sagas (saga, state, started_at) where state not in ('completed', 'compensated');
create index sagas_waits_for on annals.sagas (waits_for) where waits_for is not null;
create index sagas_correlation_id on annals.sagas (correlation_id);

-- Whom a process calls outside, and whether it does at present.
create table annals.breakers (
  process_id uuid        not null,
  target     text        not null,
  state      text        not null,
  failures   integer     not null, -- in a row
  last_error text,
  open_until timestamptz,
  changed_at timestamptz not null default clock_timestamp(),
  constraint breakers_key primary key (process_id, target)
);

-- What somebody said about a target last: it holds for every process, also for one that starts later.
create table annals.breaker_orders (
  target     text        not null,
  order_id   bigint      not null generated always as identity,
  opens      boolean     not null,
  actor      text        not null,
  reason     text        not null,
  ordered_at timestamptz not null default clock_timestamp(),
  constraint breaker_orders_key primary key (target)
);

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
    execute format('grant select on annals.sagas, annals.breakers, annals.breaker_orders to %I', thing.role);
    if thing.writes then
      execute format('grant insert, update, delete on annals.sagas, annals.breakers, annals.breaker_orders to %I', thing.role);
    end if;
  end loop;
end $$;
