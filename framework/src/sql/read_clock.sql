-- Returns (timestamptz): the time, by the database's clock.
select statement_timestamp()
