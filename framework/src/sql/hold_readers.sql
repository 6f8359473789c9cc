-- Keeps readers away from the live tables until the swap (prepare_swap.sql said of what) has ended, or gives up if somebody reads
-- them. Whoever has begun to read them goes on with them: their snapshot would find nothing in the new ones. The row with
-- the position comes first, for a projector's batch begins with it.
do $$
declare
  thing record;
begin
  for thing in
    select format('%I.%I', n.nspname, c.relname) as name
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = current_setting('annals.swap')::json->>'live' and c.relkind in ('r', 'p')
    order by c.relname <> '_position', c.relname
  loop
    execute format('lock table %s in access exclusive mode', thing.name);
  end loop;
end $$
