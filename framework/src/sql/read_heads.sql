-- Reads how far streams are.
--
--   $1 streams  text[]
--
-- Returns (stream text, version bigint).
select s.stream, (select e.version from annals.events e where e.stream = s.stream order by e.version desc limit 1)
from unnest($1::text[]) as s(stream)
