-- Holds a follower's checkpoints, for the rest of the transaction: no batch commits meanwhile.
--
--   $1 follower  text
select 1 from annals.checkpoints where follower = $1 order by generation, partition for update
