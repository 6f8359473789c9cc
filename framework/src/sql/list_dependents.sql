-- Lists what depends on the relations of a schema from outside of it: views and the like of somebody's own.
--
--   $1 schema  text
--
-- Returns (text).
select distinct pg_describe_object('pg_class'::regclass, dependent.oid, 0)
from pg_class c
join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = c.oid and d.deptype = 'n'
join pg_rewrite r on d.classid = 'pg_rewrite'::regclass and r.oid = d.objid
join pg_class dependent on dependent.oid = r.ev_class
where c.relnamespace = to_regnamespace(quote_ident($1)) and dependent.relnamespace <> c.relnamespace
union
select distinct pg_describe_object('pg_constraint'::regclass, k.oid, 0)
from pg_constraint k
join pg_class referenced on referenced.oid = k.confrelid
join pg_class referencing on referencing.oid = k.conrelid
where k.contype = 'f' and referenced.relnamespace = to_regnamespace(quote_ident($1))
  and referencing.relnamespace <> referenced.relnamespace
