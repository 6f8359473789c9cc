-- Reports what protection this store lacks, as this role sees it.
--
-- Returns (severity text, what text, cure text): 'fault' breaks a promise, 'warning' weakens one or will.
with role as materialized (
  select r.rolname, r.rolsuper,
    pg_has_role(c.relowner, 'usage') as owns,
    has_sequence_privilege('annals.positions', 'update') as may_set,
    has_column_privilege('annals.events', 'position', 'insert') as may_place
  from pg_roles r, pg_class c
  where r.rolname = current_user and c.oid = 'annals.events'::regclass
)
select 'warning' as severity, format('connected as superuser %s, who may alter history', rolname) as what,
  'create the store''s roles (Annals::create_roles) and let the application log in as a member of the writer role' as cure
from role where rolsuper
union all
select 'warning', format('connected as %s, which owns the log and may drop its guards', rolname),
  'create the store''s roles (Annals::create_roles) and let the application log in as a member of the writer role'
from role where owns and not rolsuper
union all
select 'warning', format('%s may set the sequence of positions or choose a position', rolname),
  'revoke update on sequence annals.positions, and insert on column position of annals.events'
from role where (may_set or may_place) and not owns and not rolsuper
union all
select 'fault', format('the trigger refuse_change on %s is missing or not ENABLE ALWAYS: history can be altered', guarded.name),
  'restore it as migration 0001 makes it'
from (values ('annals.events'), ('annals.commands')) as guarded(name)
where not exists (
  select from pg_trigger t
  where t.tgrelid = guarded.name::regclass and t.tgname = 'refuse_change' and t.tgenabled = 'A')
union all
select 'fault', format('%s is %s: an acknowledged event can be lost in a crash', name, setting),
  format('set %s to on', name)
from pg_settings where name in ('fsync', 'full_page_writes') and setting = 'off'
union all
select 'warning', format('synchronous_commit is %s here; appends set it to on for themselves, other writes do not', setting),
  'alter role or database … set synchronous_commit = on'
from pg_settings where name = 'synchronous_commit' and setting in ('off', 'local')
union all
select 'warning', format('session_replication_role is %s: ordinary triggers do not fire', setting),
  'alter role or database … reset session_replication_role'
from pg_settings where name = 'session_replication_role' and setting <> 'origin'
union all
select 'warning', format('prepared transaction %s of %s is open since %s', quote_literal(gid), owner, prepared),
  format('commit prepared %s, or rollback prepared %s', quote_literal(gid), quote_literal(gid))
from pg_prepared_xacts where database = current_database() and prepared < now() - interval '1 minute'
union all
select 'warning', format('session %s (%s) sits idle in a transaction since %s', pid, application_name, state_change),
  format('select pg_terminate_backend(%s)', pid)
from pg_stat_activity
where datname = current_database() and state like 'idle in transaction%' and state_change < now() - interval '1 minute'
union all
select 'warning', format('%s sessions of other logins are hidden from %s: one that sits idle in a transaction goes unseen',
    count(*), current_user),
  'grant pg_read_all_stats to the store''s writer role'
from pg_stat_activity
where datname = current_database() and usename is not null and query = '<insufficient privilege>'
having count(*) > 0
union all
select 'fault', format('%s has failed %s times and stands at position %s: %s', follower, attempts, position, last_error),
  coalesce(format('look at the event at position %s', failed_position), 'mend the cause; it goes on by itself')
from annals.checkpoints where attempts > 0
