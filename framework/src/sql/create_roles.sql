-- Makes the store's roles and gives each what it needs: owner (migrates), writer (the application), reader.
--
-- Roles belong to the whole server, so their names carry database and store. Different pairs can still lead to one name:
-- each role is marked by its comment, and one without this store's mark is refused. Nothing is granted on what is made
-- later, but for the tables of a read model in its own schema.
do $$
declare
  store text := (select n.nspname from pg_class c join pg_namespace n on n.oid = c.relnamespace
                 where c.oid = 'annals.events'::regclass);
  base text := left(current_database(), 24) || '_' || store;
  mark text := format('annals %s %s', current_database(), store);
  owner text := base || '_owner';
  writer text := base || '_writer';
  reader text := base || '_reader';
  models text[];
  thing record;
begin
  perform set_config('lock_timeout', '5s', true);
  perform pg_advisory_xact_lock(hashtextextended('annals roles', 0));
  for thing in
    select made.name, r.oid is not null as there, shobj_description(r.oid, 'pg_authid') as mark
    from unnest(array[owner, writer, reader]) as made(name) left join pg_roles r on r.rolname = made.name
  loop
    if not thing.there then
      execute format('create role %I nologin', thing.name);
      execute format('comment on role %I is %L', thing.name, mark);
    elsif thing.mark is distinct from mark then
      raise exception 'role % is not known to be of store % in database %: its comment is %, not %. If it serves another '
        'database or store, rename this database. If it is left over, drop it, or say that it is this store''s: %',
        thing.name, store, current_database(), coalesce(quote_literal(thing.mark), 'missing'), quote_literal(mark),
        format('comment on role %I is %L', thing.name, mark)
        using errcode = 'duplicate_object';
    end if;
  end loop;
  if not pg_has_role(owner, 'usage') then
    execute format('grant %I to current_user', owner);
  end if;
  execute format('grant create on database %I to %I', current_database(), owner);
  begin
    -- So that a session of any login can be named when it holds readers up.
    if not pg_has_role(writer, 'pg_read_all_stats', 'usage') then
      execute format('grant pg_read_all_stats to %I', writer);
    end if;
  exception when insufficient_privilege then null;
  end;

  execute format('grant usage on schema %I to %I, %I', store, writer, reader);
  execute format('grant select on all tables in schema %I to %I, %I', store, writer, reader);
  execute format('revoke all on sequence %I.positions from %I, %I', store, writer, reader);
  execute format('grant usage, select on sequence %I.positions to %I', store, writer);
  execute format('grant select on sequence %I.positions to %I', store, reader);
  execute format('grant insert (version, event_id, correlation_id, causation_id, command_id, schema_version, stream, '
    'event_type, actor, traceparent, payload) on %I.events to %I', store, writer);
  execute format('grant insert (command_id, version, position, stream, body) on %I.commands to %I', store, writer);
  execute format('grant insert, update, delete on %I.snapshots to %I', store, writer);
  execute format('grant insert, update, delete on %I.checkpoints, %I.followers to %I', store, store, writer);
  execute format('grant insert, update, delete on %I.generations, %I.processes, %I.dead_letters, %I.sagas to %I', store, store,
    store, store, writer);
  execute format('grant insert, update, delete on %I.breakers, %I.breaker_orders to %I', store, store, writer);
  execute format('grant insert on %I.actions to %I', store, writer);

  -- The read models that are there. One that comes later is opened when it is set up: create_read_model.sql.
  models := array(
    select n.nspname from annals.followers f join pg_namespace n on n.nspname = store || '_' || f.name
    where exists (select from pg_class c where c.relnamespace = n.oid and c.relname = '_position'));
  for thing in select unnest(models) as model loop
    execute format('grant usage on schema %I to %I, %I', thing.model, writer, reader);
    execute format('grant select, insert, update, delete, truncate on all tables in schema %I to %I', thing.model, writer);
    execute format('grant usage, select on all sequences in schema %I to %I', thing.model, writer);
    execute format('grant select on all tables in schema %I to %I', thing.model, reader);
  end loop;
  for thing in select model, maker from unnest(models) as model, unnest(array[owner, current_user::text]) as maker loop
    execute format('alter default privileges for role %I in schema %I '
      'grant select, insert, update, delete, truncate on tables to %I', thing.maker, thing.model, writer);
    execute format('alter default privileges for role %I in schema %I grant usage, select on sequences to %I',
      thing.maker, thing.model, writer);
    execute format('alter default privileges for role %I in schema %I grant select on tables to %I',
      thing.maker, thing.model, reader);
  end loop;

  -- Only what is another's: to change an owner waits for every open append.
  for thing in
    with given as (select n.oid, n.nspname, n.nspowner from pg_namespace n where n.nspname = any (models || store)),
    heir as (select r.oid from pg_roles r where r.rolname = owner)
    select format('alter schema %I owner to %I', nspname, owner) as change
    from given, heir where nspowner <> heir.oid
    union all
    -- `alter table` takes views and sequences too. A sequence that a column owns goes with its table.
    select format('alter table %s owner to %I', c.oid::regclass, owner)
    from pg_class c join given on given.oid = c.relnamespace cross join heir
    where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') and c.relowner <> heir.oid and not (c.relkind = 'S' and exists (
      select from pg_depend d
      where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype in ('a', 'i')))
    union all
    select format('alter routine %s owner to %I', p.oid::regprocedure, owner)
    from pg_proc p join given on given.oid = p.pronamespace cross join heir
    where p.prokind <> 'a' and p.proowner <> heir.oid
  loop
    execute thing.change;
  end loop;
end $$
