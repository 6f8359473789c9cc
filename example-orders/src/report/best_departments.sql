-- The departments that sold most over all days, from the view department_sales.
--
--   $1 limit bigint
--
-- Returns (name, count, amount_cents): the department, and how many lines.
select split_part(key, '/', 2) as name,
       sum((document->>'lines')::bigint)::bigint as count,
       sum((document->>'amount_cents')::bigint)::bigint as amount_cents
from annals_department_sales.documents
group by name
order by amount_cents desc, name
limit $1
