-- Ends apply_view.sql.
--
-- Returns (boolean): whether the checkpoint moved. If it did not, nothing was changed.
select exists (select from moved)
