-- Counts a view's documents.
--
-- Returns (bigint).
select count(*) from read_model.documents
