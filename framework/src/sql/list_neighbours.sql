-- Lists the processes of one machine, and those long gone.
--
--   $1 host  text
--
-- Returns (process_id uuid, pid integer, gone boolean).
select process_id, pid, alive_until < clock_timestamp() - interval '1 minute'
from annals.processes
where host = $1 or alive_until < clock_timestamp() - interval '1 minute'
