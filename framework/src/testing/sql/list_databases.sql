-- Lists the databases of tests, also those whose process is gone.
--
-- Returns (name).
select datname from pg_database where datname like 'annals\_test\_%'
