-- What lease, peek and drain share: whose turn it is.

local DRAIN_MS = 15000 -- a worker with room asks more often than that

-- A busy farm has no worker that holds nothing: one at a time gets no new jobs until it does.
local function drains(worker, at, lease_ms)
  local latest = at + math.max(lease_ms, DRAIN_MS)
  redis.call('ZREMRANGEBYSCORE', DRAINING, '-inf', at)
  redis.call('ZREMRANGEBYSCORE', DRAINING, '(' .. latest, '+inf') -- from before the clock was set back
  local chosen = redis.call('ZRANGE', DRAINING, 0, 0)[1]
  if chosen and chosen ~= worker then
    return false
  end
  redis.call('ZADD', DRAINING, latest, worker)
  return true
end

-- Where a process that asks under a worker's name with another instance is that worker started anew, what its predecessor
-- held need not wait for the deadline. Unless that one has renewed the lease since: then two machines have one name.
-- `started` is when the process was first heard of.
local function is_left_by_predecessor(id, worker, instance, lease_ms, started)
  if redis.call('HEXISTS', TOKEN, id) == 0 then
    return false
  end
  local tries = tries_of(id)
  -- Ids of processes sort by their start: a late request of a dead one takes nothing from its successor.
  if tries.worker ~= worker or (tries.instance or '') >= instance then
    return false
  end
  return tonumber(redis.call('ZSCORE', LEASED, id)) - lease_ms <= started
end
