-- Stores documents of a view.
--
--   $1 keys       text[]
--   $2 documents  text[]
insert into read_model.documents (key, document)
select n.key, n.document::jsonb from unnest($1::text[], $2::text[]) as n(key, document)
on conflict (key) do update set document = excluded.document
