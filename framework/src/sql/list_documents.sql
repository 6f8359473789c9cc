-- Reads a page of a view's documents in key order.
--
--   $1 after  text    exclusive; null for the first page
--   $2 limit  bigint
--
-- Returns (key text, document text).
select key, document::text from read_model.documents
where key >= coalesce($1::text, '') and key is distinct from $1
order by key
limit $2
