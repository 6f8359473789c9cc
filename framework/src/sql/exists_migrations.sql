-- Tells whether the store's list of migrations is there.
--
-- Returns (boolean).
select to_regclass('annals.migrations') is not null
