-- Tells whether the next statement sees what others have committed by then.
--
-- Returns (isolation text): the transaction's isolation level, which must be read committed.
select current_setting('transaction_isolation')
