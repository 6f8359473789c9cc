-- Tells whether a connection is outside any transaction: a statement of its own begins with its transaction.
--
-- Returns (boolean).
select now() = statement_timestamp()
