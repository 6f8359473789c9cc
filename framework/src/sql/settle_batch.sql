-- Tells what the end of a transaction would do for a read model, where a batch is only a part of one: it checks what is deferred,
-- and drops temporary tables.
--
--   $1 schema  text
--
-- Returns (text): statements, for the simple protocol.
select concat('set constraints ' || names || ' immediate; ', 'set constraints ' || deferred || ' deferred; ', 'discard temp')
from (
  select string_agg(format('%I.%I', $1::text, conname), ', ' order by conname) as names,
    string_agg(format('%I.%I', $1::text, conname), ', ' order by conname) filter (where condeferred) as deferred
  from pg_constraint where connamespace = to_regnamespace(quote_ident($1)) and condeferrable
) as found
