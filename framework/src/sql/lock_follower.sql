-- Lets one process at a time change what there is of a read model, for the rest of the transaction.
--
--   $1 schema  text
--
-- Returns (boolean, boolean, bigint): whether the schema is there, whether this role may create one, and a number that no
-- generation has had.
select pg_advisory_xact_lock(hashtextextended('annals read model ' || $1, 0)) is not null
    and to_regnamespace(quote_ident($1)) is not null as there,
  has_database_privilege(current_database(), 'create') as may_create,
  (extract(epoch from clock_timestamp()) * 1000000)::bigint as generation
