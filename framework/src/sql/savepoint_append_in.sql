-- Marks where an append inside a transaction of the caller begins.
savepoint annals_append
