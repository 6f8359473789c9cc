-- Takes the lock of this store's migrator for the rest of the transaction, and bounds every wait behind it.
--
--   $1 store  text
--
-- Returns (boolean): whether this role may create the schema, or owns it.
select set_config('lock_timeout', '10s', true) is not null
  and pg_advisory_xact_lock(hashtextextended('annals migrations ' || $1, 0)) is not null
  and coalesce(
    (select pg_has_role(n.nspowner, 'usage') from pg_namespace n where n.nspname = $1),
    has_database_privilege(current_database(), 'create'))
