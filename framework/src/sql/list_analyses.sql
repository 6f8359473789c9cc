-- Lists the statements that gather what plans rest on, for the tables of a schema.
--
--   $1 schema  text
--
-- Returns (text).
select format('analyze %s', c.oid::regclass) from pg_class c
where c.relkind in ('r', 'p') and c.relnamespace = to_regnamespace(quote_ident($1))
