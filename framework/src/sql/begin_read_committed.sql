-- Begins a transaction at the level that the log may be read at, whatever the database says.
begin isolation level read committed read write
