-- Stores the first documents of a view in a shadow: half the work of storing where there may be one of the same key.
--
--   $1 keys       text[]
--   $2 documents  text[]
insert into read_model.documents (key, document)
select n.key, n.document::jsonb from unnest($1::text[], $2::text[]) as n(key, document)
