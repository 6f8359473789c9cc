-- The second half of a swap, whose first (prepare_swap.sql) said which schemas it is about. What readers were granted on the live
-- schema and its relations, and on columns, they are granted on those of the same names.
do $$
declare
  swap json := current_setting('annals.swap')::json;
  live text := swap->>'live';
  shadow text := swap->>'shadow';
  grantee text;
  thing record;
begin
  for thing in
    select case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end as grantee,
      a.privilege_type, format('schema %I', shadow) as target, a.is_grantable
    from pg_namespace n, aclexplode(n.nspacl) a where n.nspname = live and a.grantee <> n.nspowner
    union all
    select case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end,
      a.privilege_type, format('%s %I.%I', case c.relkind when 'S' then 'sequence' else 'table' end, shadow, c.relname),
      a.is_grantable
    from pg_class c join pg_namespace n on n.oid = c.relnamespace, aclexplode(c.relacl) a
    where n.nspname = live and a.grantee <> c.relowner and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
      and to_regclass(format('%I.%I', shadow, c.relname)) is not null
    union all
    select case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end,
      format('%s (%I)', a.privilege_type, t.attname), format('table %I.%I', shadow, c.relname), a.is_grantable
    from pg_class c join pg_namespace n on n.oid = c.relnamespace join pg_attribute t on t.attrelid = c.oid,
      aclexplode(t.attacl) a
    where n.nspname = live and a.grantee <> c.relowner and not t.attisdropped
      and exists (
        select from pg_attribute s
        where s.attrelid = to_regclass(format('%I.%I', shadow, c.relname)) and s.attname = t.attname and not s.attisdropped)
  loop
    execute format('grant %s on %s to %s%s', thing.privilege_type, thing.target, thing.grantee,
      case when thing.is_grantable then ' with grant option' else '' end);
  end loop;
  execute format('alter schema %I rename to %I', live, swap->>'old');
  execute format('alter schema %I rename to %I', shadow, live);
end $$
