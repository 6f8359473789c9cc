-- Looks for appends whose outcome was not learned: for the first and the last event of each, by id. One statement for all of them, for
-- the network that has lost an answer may lose more.
--
--   $1 streams     text[]
--   $2 afters      bigint[]  versions above which the events would be
--   $3 first_ids   uuid[]
--   $4 last_ids    uuid[]
--
-- Returns (nth bigint: which append, from 1, event_id uuid, version bigint, position bigint) of those that are there. Each is looked for
-- by itself.
select w.nth, e.event_id, e.version, e.position
from unnest($1::text[], $2::bigint[], $3::uuid[], $4::uuid[]) with ordinality as w(stream, after, first_id, last_id, nth)
cross join lateral (
  select event_id, version, position
  from annals.events
  where stream = w.stream and version > w.after and event_id in (w.first_id, w.last_id)
  offset 0
) as e
