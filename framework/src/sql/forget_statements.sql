-- Behind a pooler in transaction mode: takes away the prepared statements that other clients left on the server connection
-- before a projector's code makes its own. A client counts its names from 1, and so does the next one.
do $$
declare
  statement text;
begin
  for statement in select name from pg_prepared_statements where name like 'sqlx\_s\_%' loop
    execute format('deallocate %I', statement);
  end loop;
end
$$
