-- Takes the key's index away from the documents of a shadow whose first ones are to be stored: made behind them, it costs a
-- fraction. Only the table's owner may; for anyone else it stays. For the simple protocol.
do $$
begin
  if (select pg_has_role(c.relowner, 'usage') from pg_class c where c.oid = 'read_model.documents'::regclass) then
    alter table read_model.documents drop constraint documents_pkey;
  end if;
end $$
