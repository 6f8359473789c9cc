-- Creates the table of a view's documents.
create table documents (
  key      text  primary key collate "C",
  document jsonb not null
)
