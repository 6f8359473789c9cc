-- Reads the events that are parked for a key, in order.
--
--   $1 follower    text
--   $2 generation  bigint
--   $3 partition   integer
--   $4 key         text
--   $5 by_stream   boolean
--   $6 limit       bigint
--
-- Returns the columns of an envelope (framework/src/store/read.rs).
select e.position, e.version, e.event_id, e.correlation_id, e.causation_id, e.command_id, e.recorded_at, e.schema_version,
  e.stream, e.event_type, e.actor, e.traceparent, e.payload
from annals.dead_letters d
join annals.events e on e.position = d.position
where d.follower = $1 and d.generation = $2 and d.partition = $3 and d.key = $4 and d.by_stream = $5
  and d.state <> 'discarded'
order by d.position
limit $6
