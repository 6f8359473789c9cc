-- Tells whether a projector's SQL left the transaction as it was.
--
--   $1 transaction  text
--
-- Returns (boolean). Fails in a transaction that a statement broke.
select pg_current_xact_id_if_assigned()::text is not distinct from $1
