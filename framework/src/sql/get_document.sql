-- Reads one document of a view.
--
--   $1 key  text
--
-- Returns (document text).
select document::text from read_model.documents where key = $1
