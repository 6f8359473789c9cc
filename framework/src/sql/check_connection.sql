-- Tells whether a connection is outside any transaction: a statement of its own begins with its transaction. Sent by the
-- simple protocol only: the extended one begins the transaction before the statement.
--
-- Returns (boolean).
select now() = statement_timestamp()
