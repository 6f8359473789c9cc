-- Tells in which transaction a projector's SQL left its connection. For the simple protocol: behind a pooler, code that ended
-- its transaction has left its connection, too.
--
-- Returns (text); null outside of one. Fails in a transaction that a statement broke.
select pg_current_xact_id_if_assigned()::text
