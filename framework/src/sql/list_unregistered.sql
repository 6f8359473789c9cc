-- Lists followers of a definition that an app does not register: one of them may be known to it by another name.
--
--   $1 definition  text
--   $2 names       text[]  those that the app registers
--
-- Returns (name text).
select f.name from annals.followers f where f.definition = $1 and f.name <> all ($2) order by f.name
