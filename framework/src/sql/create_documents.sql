-- Creates the table of a view's documents. The room that pages keep lets an update stay on its page, out of the index.
create table documents (
  key      text  primary key collate "C",
  document jsonb not null
) with (fillfactor = 80)
