-- Refuses the end of this transaction but by a rollback, whoever asks for it: a replay check leaves nothing behind.
create schema read_model;
create function read_model.refuse_commit() returns trigger language plpgsql as $$
begin
  raise exception 'a replay check writes nothing: its transaction cannot be committed';
end $$;
create table read_model.guard ();
create constraint trigger refuse_commit after insert on read_model.guard deferrable initially deferred
  for each row execute function read_model.refuse_commit();
insert into read_model.guard default values
