-- Keeps what recognises a follower under another name, if this role may and nothing is kept yet.
--
--   $1 name        text
--   $2 definition  text
update annals.followers set definition = $2
where name = $1 and definition is null and has_table_privilege('annals.followers', 'update')
