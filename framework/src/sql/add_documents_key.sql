-- Gives the key's index back to the documents of a shadow (drop_documents_key.sql). For the simple protocol.
do $$
begin
  if not exists (
    select from pg_constraint c where c.conrelid = 'read_model.documents'::regclass and c.conname = 'documents_pkey')
  then
    alter table read_model.documents add constraint documents_pkey primary key (key);
  end if;
end $$
