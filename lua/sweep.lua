-- sweep: expired leases, due delays, reservations that ran out, also where the clock was set back; workers that were not
-- seen for a day are forgotten. Servers call it each second. KEYS: the common ones, orders, logins. ARGV: lease_ms,
-- affinity_ms. Answers how many jobs moved.

local BRING_LIMIT = 1000 -- jobs of each place
local at, lease_ms, affinity_ms = now(), tonumber(ARGV[1]), tonumber(ARGV[2])

-- What lies further ahead than it is ever put was written before the clock was set back.
local function bring_in(key, latest)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', key, '(' .. latest, '+inf', 'LIMIT', 0, BRING_LIMIT)) do
    redis.call('ZADD', key, latest, id)
  end
end

bring_in(LEASED, at + lease_ms)
bring_in(DELAYED, at + DELAY_MS_AT_MOST)
bring_in(KEPT, at + affinity_ms)
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', WORKERS, '-inf', at - WORKER_MS, 'LIMIT', 0, SWEEP_LIMIT)) do
  redis.call('ZREM', WORKERS, worker)
  redis.call('HDEL', STATUS, worker)
  redis.call('HDEL', KEYS[OWN + 1], worker)
  redis.call('HDEL', KEYS[OWN + 2], worker)
end
redis.call('ZREMRANGEBYSCORE', DEATHS, '-inf', at - WORKER_MS)
redis.call('ZREMRANGEBYSCORE', STARTED, '-inf', at - STARTED_MS)
for _ = 1, STALE_LIMIT do -- what was cancelled must not keep others waiting
  local id = redis.call('LINDEX', READY, 0)
  if not id or stale_of(id) >= 0 then
    break
  end
  redis.call('LPOP', READY)
  note_dropped(id)
end
return sweep(at, lease_ms, affinity_ms)
