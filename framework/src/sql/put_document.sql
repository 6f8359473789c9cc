-- Puts a document of a view in place, or takes it away.
--
--   $1 key       text
--   $2 document  text  null to take it away
--
-- Returns (before text, after text): none where there is no document.
with before as (
  select document from read_model.documents where key = $1
),
removed as (
  delete from read_model.documents where key = $1 and $2::text is null
),
stored as (
  insert into read_model.documents as d (key, document) select $1, $2::text::jsonb where $2::text is not null
  on conflict (key) do update set document = excluded.document where d.document is distinct from excluded.document
)
select (select document::text from before), $2::text::jsonb::text
