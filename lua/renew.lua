-- renew: a worker keeps its leases in this shard; that it is alive is told by heartbeat.lua. KEYS: the common ones.
-- ARGV: lease_ms, then for each job as in heartbeat.lua. Answers the ids whose lease is no longer this one.
-- with renewal

redis.call('ZREM', WORKERS, '') -- as in heartbeat.lua: this is taken also where memory is full
return renew(2, now(), tonumber(ARGV[1]))
