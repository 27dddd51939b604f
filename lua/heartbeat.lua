-- heartbeat: a worker is alive and keeps its leases. KEYS: the common ones.
-- ARGV: worker, lease_ms, status as JSON, then for each job id, token, how many bytes of it are on disk, its title or ''
-- and that folded.
-- Answers the ids whose lease is no longer this one.
-- with renewal

local worker, lease_ms = ARGV[1], tonumber(ARGV[2])
-- Where memory is full a script is refused at its first write that may need some, and not after another write. A
-- lease must be kept then, too: so this begins with a write that is never refused, of a worker that there never is.
redis.call('ZREM', WORKERS, '')
local at = now()
redis.call('ZADD', WORKERS, at, worker)
redis.call('HSET', STATUS, worker, ARGV[3])
return renew(4, at, lease_ms)
