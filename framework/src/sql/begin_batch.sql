-- Shows which process a batch's transaction belongs to, so that whoever takes over from a process that is stopped can end
-- the transaction it left open (end_batches.sql).
--
--   $1 owner  uuid
select pg_advisory_xact_lock_shared('annals.checkpoints'::regclass::bigint::bit(32)::integer, hashtext($1::text))
