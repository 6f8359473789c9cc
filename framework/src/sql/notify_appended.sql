-- Tells other processes that something was appended.
--
--   $1 channel  text
select pg_notify($1, '')
