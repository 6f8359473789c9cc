-- Lists the statements that drop a schema with the relations in it, in order and without CASCADE: what somebody else made to
-- depend on them keeps it.
--
--   $1 schema  text
--
-- Returns (text).
select statement from (
  select 1 as nth, format('drop view %s', string_agg(c.oid::regclass::text, ', ')) as statement
  from pg_class c where c.relnamespace = to_regnamespace(quote_ident($1)) and c.relkind = 'v' having count(*) > 0
  union all
  select 2, format('drop materialized view %s', string_agg(c.oid::regclass::text, ', '))
  from pg_class c where c.relnamespace = to_regnamespace(quote_ident($1)) and c.relkind = 'm' having count(*) > 0
  union all
  select 3, format('drop table %s', string_agg(c.oid::regclass::text, ', '))
  from pg_class c
  where c.relnamespace = to_regnamespace(quote_ident($1)) and c.relkind in ('r', 'p') and not c.relispartition having count(*) > 0
  union all
  select 4, format('drop sequence %s', string_agg(c.oid::regclass::text, ', '))
  from pg_class c
  where c.relnamespace = to_regnamespace(quote_ident($1)) and c.relkind = 'S' and not exists (
    select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype in ('a', 'i'))
  having count(*) > 0
  union all
  select 5, format('drop routine %s', string_agg(p.oid::regprocedure::text, ', '))
  from pg_proc p where p.pronamespace = to_regnamespace(quote_ident($1)) having count(*) > 0
  union all
  select 6, format('drop type %s', string_agg(t.oid::regtype::text, ', '))
  from pg_type t left join pg_class c on c.oid = t.typrelid
  where t.typnamespace = to_regnamespace(quote_ident($1)) and t.typelem = 0 and (t.typtype in ('e', 'd', 'r') or c.relkind = 'c')
  having count(*) > 0
  union all
  select 7, format('drop schema %I', $1::text) where to_regnamespace(quote_ident($1)) is not null
) as statements order by nth
