-- Looks up what a command id led to.
--
--   $1 command_id  uuid
--
-- Returns (stream text, version bigint, position bigint, body bytea).
select stream, version, position, body from annals.commands where command_id = $1
