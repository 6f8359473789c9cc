-- Lets a follower that builds nothing go on under a newer version, or with other categories.
--
--   $1 name        text
--   $2 version     integer
--   $3 categories  text[]
with generation as (
  update annals.generations g set version = $2, categories = $3
  where g.follower = $1 and g.purpose = 'live' and g.version <= $2 and (g.version < $2 or g.categories <> $3)
  returning g.generation
)
update annals.checkpoints c set version = $2, fence = c.fence + 1, owner = null
from generation where c.follower = $1 and c.generation = generation.generation
