-- Creates the schema of a read model, with the row that says how far its content goes, for readers that need both at
-- the same moment. The read model's own statements follow, under its bare names; `pg_temp` last, or a temporary table of
-- somebody's would take the writes.
create schema read_model;
create table read_model._position (
  partition integer primary key,
  position  bigint  not null
) with (fillfactor = 50);
insert into read_model._position (partition, position) values (0, 0);
select set_config('search_path', 'read_model' || ', pg_temp', true);
