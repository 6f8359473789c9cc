-- Records a migration as applied.
--
--   $1 number    integer
--   $2 name      text
--   $3 checksum  bytea
insert into annals.migrations (number, name, checksum) values ($1, $2, $3)
