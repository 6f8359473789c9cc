-- Creates the store's schema, the list of its migrations, and which builds may work with it: those that know at least
-- migration `minimum_reader`.
create schema if not exists annals;
create table if not exists annals.migrations (
  number     integer     primary key,
  name       text        not null,
  checksum   bytea       not null,
  applied_at timestamptz not null default clock_timestamp()
);
create table if not exists annals.store (
  only_row       boolean primary key default true check (only_row),
  minimum_reader integer not null
);
insert into annals.store (minimum_reader) values (1) on conflict do nothing;
