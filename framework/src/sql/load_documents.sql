-- Loads documents of a view by key.
--
--   $1 keys  text[]
--
-- Returns (key text, document text).
select key, document::text from read_model.documents where key = any ($1)
