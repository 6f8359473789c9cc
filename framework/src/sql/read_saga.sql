-- Reads who runs an instance of a saga.
--
--   $1 stream  text
--
-- Returns (owner uuid, state text, step text, interrupted boolean); no row if there is no such instance.
select owner, state, step, interrupted from annals.sagas where stream = $1
