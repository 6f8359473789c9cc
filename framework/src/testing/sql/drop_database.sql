-- Drops a test's database and the connections that are still open to it.
--
--   {name}   the database's name: letters, digits, underscores
drop database if exists {name} with (force)
