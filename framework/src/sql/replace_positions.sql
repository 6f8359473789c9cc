-- Lets a read model's rows say how far they go, with another number of partitions.
--
--   $1 partitions  integer
--   $2 position    bigint
with gone as (
  delete from read_model._position where partition > $1
)
insert into read_model._position (partition, position) select partition, $2 from generate_series(1, $1) as partition
on conflict (partition) do update set position = excluded.position
