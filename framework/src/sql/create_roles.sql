-- Makes the store's roles and gives each what it needs: owner (migrates), writer (the application), reader.
--
-- Roles belong to the whole server, so their names carry database and store.
do $$
declare
  schema text := (select c.relnamespace::regnamespace::text from pg_class c where c.oid = 'annals.events'::regclass);
  base text := left(current_database(), 24) || '_' || trim(both '"' from schema);
  owner text := base || '_owner';
  writer text := base || '_writer';
  reader text := base || '_reader';
  model record;
  thing record;
begin
  perform pg_advisory_xact_lock(hashtextextended('annals roles', 0));
  for thing in select unnest(array[owner, writer, reader]) as name loop
    if not exists (select from pg_roles where rolname = thing.name) then
      execute format('create role %I nologin', thing.name);
    end if;
  end loop;
  if not pg_has_role(owner, 'member') then
    execute format('grant %I to current_user', owner);
  end if;
  execute format('grant create on database %I to %I', current_database(), owner);

  execute format('grant usage on schema %s to %I, %I', schema, writer, reader);
  execute format('grant select on all tables in schema %s to %I, %I', schema, writer, reader);
  execute format('revoke all on sequence %s.positions from %I, %I', schema, writer, reader);
  execute format('grant usage, select on sequence %s.positions to %I', schema, writer);
  execute format('grant select on sequence %s.positions to %I', schema, reader);
  execute format('grant insert (version, event_id, correlation_id, causation_id, command_id, schema_version, stream, '
    'event_type, actor, traceparent, payload) on %s.events to %I', schema, writer);
  execute format('grant insert (command_id, version, position, stream, body) on %s.commands to %I', schema, writer);
  execute format('grant insert, update, delete on %s.snapshots to %I', schema, writer);
  execute format('grant insert, update on %s.checkpoints, %s.followers to %I', schema, schema, writer);

  -- Read models: those that are there, and those that the owner, or whoever calls this, will make.
  for model in
    select n.nspname from annals.followers f
    join pg_namespace n on n.nspname = trim(both '"' from schema) || '_' || f.name
  loop
    execute format('grant usage on schema %I to %I, %I', model.nspname, writer, reader);
    execute format('grant select, insert, update, delete, truncate on all tables in schema %I to %I', model.nspname, writer);
    execute format('grant usage, select on all sequences in schema %I to %I', model.nspname, writer);
    execute format('grant select on all tables in schema %I to %I', model.nspname, reader);
    execute format('alter schema %I owner to %I', model.nspname, owner);
  end loop;
  for thing in select unnest(array[owner, current_user::text]) as name loop
    execute format('alter default privileges for role %I grant usage on schemas to %I, %I', thing.name, writer, reader);
    execute format('alter default privileges for role %I grant select, insert, update, delete, truncate on tables to %I',
      thing.name, writer);
    execute format('alter default privileges for role %I grant usage, select on sequences to %I', thing.name, writer);
    execute format('alter default privileges for role %I grant select on tables to %I', thing.name, reader);
  end loop;

  execute format('alter schema %s owner to %I', schema, owner);
  for thing in
    select format('alter %s %s owner to %I', case c.relkind when 'S' then 'sequence' else 'table' end, c.oid::regclass, owner) as change
    from pg_class c
    where c.relnamespace = schema::regnamespace and c.relkind in ('r', 'S')
      and not exists (select from pg_depend d where d.objid = c.oid and d.deptype = 'a')
    union all
    select format('alter function %s owner to %I', p.oid::regprocedure, owner)
    from pg_proc p where p.pronamespace = schema::regnamespace
  loop
    execute thing.change;
  end loop;
end $$
