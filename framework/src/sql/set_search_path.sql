-- Lets the statements of this transaction find tables by their bare names.
--
--   $1 path  text
select set_config('search_path', $1, true)
