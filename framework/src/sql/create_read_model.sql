-- Creates the schema of a read model, with the row that says how far its content goes, for readers that need both at
-- the same moment. The read model's own statements follow, under its bare names; `pg_temp` last, or a temporary table of
-- somebody's would take the writes.
create schema read_model;
-- If the store has its roles, whatever this role makes in the schema is theirs to use. Only a role that bears the
-- store's mark counts: create_roles.sql.
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
    execute format('grant usage on schema read_model to %I', thing.role);
    execute format('alter default privileges in schema read_model grant select on tables to %I', thing.role);
    if thing.writes then
      execute format('alter default privileges in schema read_model grant insert, update, delete, truncate on tables to %I',
        thing.role);
      execute format('alter default privileges in schema read_model grant usage, select on sequences to %I', thing.role);
    end if;
  end loop;
end $$;
create table read_model._position (
  partition integer primary key,
  position  bigint  not null
) with (fillfactor = 50);
select set_config('search_path', 'read_model' || ', pg_temp', true);
