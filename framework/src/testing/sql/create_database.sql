-- Makes a test's database.
--
--   {name}   the database's name: letters, digits, underscores
--
-- template0 takes no connections, so tests that begin together never wait for one that looks at the template.
create database {name} template template0
