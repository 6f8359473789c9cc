-- Says which schemas a swap is about (swap_schemas.sql), and lets it wait only shortly for a lock.
--
--   $1 live    text  the schema that serves
--   $2 shadow  text  the schema that is to serve
--   $3 old     text  what the live one is called from now on
select set_config('annals.swap', json_build_object('live', $1::text, 'shadow', $2::text, 'old', $3::text)::text, true),
  set_config('lock_timeout', '2s', true)
