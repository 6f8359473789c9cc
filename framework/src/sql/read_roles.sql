-- Names the store's roles.
--
-- Returns (owner text, writer text, reader text).
select base || '_owner', base || '_writer', base || '_reader'
from (select left(current_database(), 24) || '_' || trim(both '"' from c.relnamespace::regnamespace::text) as base
      from pg_class c where c.oid = 'annals.events'::regclass) as names
