-- sweep: expired leases, due delays, reservations that ran out; workers that were not seen for a day are
-- forgotten. KEYS: the common ones, orders, logins. ARGV: lease_ms, affinity_ms. Answers how many jobs moved.

local at = now()
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
return sweep(at, tonumber(ARGV[1]), tonumber(ARGV[2]))
