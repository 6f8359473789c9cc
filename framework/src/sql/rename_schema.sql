-- Lists the statement that gives a schema another name; no row if there is no such schema.
--
--   $1 old  text
--   $2 new  text
--
-- Returns (text).
select format('alter schema %I rename to %I', $1::text, $2::text) where to_regnamespace(quote_ident($1)) is not null
