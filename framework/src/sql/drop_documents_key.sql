-- Takes the key's index away from the documents of a shadow whose first ones are to be stored: made behind them, it costs a
-- fraction. Where somebody else owns or reads the table, or indexes may rest on it, it stays. For the simple protocol.
do $$
begin
  if (select pg_has_role(c.relowner, 'usage') and has_schema_privilege(c.relnamespace, 'create')
      from pg_class c where c.oid = 'read_model.documents'::regclass) then
    lock table read_model.documents in access exclusive mode nowait;
    if not exists (
      select from annals.generations g join pg_namespace n on n.nspname = g.schema_name join pg_class c on c.relnamespace = n.oid
      where c.oid = 'read_model.documents'::regclass and g.indexed)
    then
      alter table read_model.documents drop constraint documents_pkey;
    end if;
  end if;
exception when lock_not_available or insufficient_privilege or dependent_objects_still_exist then
  null;
end $$
