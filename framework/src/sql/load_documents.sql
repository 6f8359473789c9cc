-- Loads documents of a view by key: by one probe of the index for each, for a plan that was made when the table was small
-- would go on to read all of it.
--
--   $1 keys  text[]
--
-- Returns (key text, document text).
select found.key, found.document
from unnest($1::text[]) as asked(key)
cross join lateral (
  select d.key, d.document::text as document from read_model.documents d where d.key = asked.key limit 1
) as found
