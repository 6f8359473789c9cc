-- Changes how long a statement may take, for the rest of the transaction.
--
--   $1 deadline  text  milliseconds
select set_config('statement_timeout', $1, true)
