-- Lets a new read model's rows say how far they go: nowhere yet.
--
--   $1 partitions  integer
insert into read_model._position (partition, position) select partition, 0 from generate_series(1, $1) as partition
