-- Lists the tables of a read model, and how to read their rows in an order that two copies share. Columns whose values no copy
-- repeats are left out: generated numbers, ids and times.
--
--   $1 schema  text
--
-- Returns (name text, statement text: key text, row text, in the order of the key's bytes).
with columns as (
  select c.oid, c.relname, a.attnum, a.attname,
    a.attidentity <> '' or coalesce(pg_get_expr(d.adbin, d.adrelid), '')
      ~* '(nextval|now|clock_timestamp|statement_timestamp|transaction_timestamp|gen_random_uuid|uuid_generate|random)\(|current_timestamp|current_date|localtimestamp'
      as volatile
  from pg_class c
  join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
  left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
  where c.relnamespace = to_regnamespace(quote_ident($1)) and c.relkind in ('r', 'p') and not c.relispartition
    and c.relname <> '_position'
),
tables as (
  select oid, relname,
    coalesce(string_agg(format('%L', attname), ', ') filter (where volatile), '') as left_out,
    (select string_agg(format('t.%I', k.attname), ', ' order by array_position(i.indkey::smallint[], k.attnum))
     from pg_index i join columns k on k.oid = i.indrelid and k.attnum = any (i.indkey::smallint[])
     where i.indrelid = columns.oid and i.indisprimary
     having not bool_or(k.volatile)) as key
  from columns group by oid, relname
)
select relname::text,
  format('select %s as key, row::text as row from (select %s as key, to_jsonb(t) - array[%s]::text[] as row from %I.%I t) as rows '
    'order by (%s) collate "C", (row::text) collate "C"',
    case when key is null then 'row::text' else 'key::text' end,
    case when key is null then 'null' else format('jsonb_build_array(%s)', key) end,
    left_out, $1::text, relname, case when key is null then 'row::text' else 'key::text' end)
from tables order by relname
