-- Reads the applied migrations.
--
-- Returns (number integer, name text, checksum bytea, minimum_reader integer).
select m.number, m.name, m.checksum, s.minimum_reader
from annals.migrations m cross join annals.store s
order by m.number
