-- Loads documents of a view by key.
--
--   $1 keys  text[]
--
-- Returns (key text, document jsonb).
select key, document from read_model.documents where key = any ($1)
