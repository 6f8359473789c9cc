-- Holds the checkpoint of a partition, for the rest of the transaction, and moves its fence: whoever runs it forgets what it knows
-- of the documents.
--
--   $1 follower    text
--   $2 generation  bigint
--   $3 partition   integer
update annals.checkpoints set fence = fence + 1 where follower = $1 and generation = $2 and partition = $3
