-- Ends an append inside a transaction of the caller.
release savepoint annals_append
