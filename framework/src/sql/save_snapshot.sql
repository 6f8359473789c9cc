-- Saves the state of an aggregate, unless a newer one of the same snapshot version is there.
--
--   $1 stream            text
--   $2 version           bigint
--   $3 snapshot_version  integer
--   $4 state             text
insert into annals.snapshots as s (stream, version, snapshot_version, state) values ($1, $2, $3, $4::json)
on conflict (stream, snapshot_version) do update
  set version = excluded.version, state = excluded.state, saved_at = clock_timestamp()
  where s.version < excluded.version
