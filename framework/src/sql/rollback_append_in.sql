-- Takes an append inside a transaction of the caller back.
rollback to savepoint annals_append; release savepoint annals_append
