-- Reads who runs an instance of a saga.
--
--   $1 stream  text
--
-- Returns (owner uuid); no row if there is no such instance.
select owner from annals.sagas where stream = $1
