-- Creates the schema of a read model, with the row that says how far its content goes, for readers that need both at
-- the same moment. The read model's own statements follow, under its bare names.
create schema read_model;
create table read_model._position (position bigint not null);
insert into read_model._position (position) values (0);
select set_config('search_path', 'read_model', true);
