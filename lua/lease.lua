-- lease: jobs for one worker. KEYS: the common ones, answer:<request>.
-- ARGV: count, worker, instance, lease_ms, affinity_ms, an epoch in case there is none, `count` nonces, ids that
-- the worker has chunks of. Answers {{id, token, origin, attempt}, …}.

local answer_key = KEYS[OWN + 1]
local count, worker, instance = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local lease_ms, affinity_ms = tonumber(ARGV[4]), tonumber(ARGV[5])
local first_nonce, first_have = 7, 7 + count
local DRAIN_MS = 15000 -- a worker with room asks more often than that
local at = now()

local call = 'lease ' .. worker
local given = recall(answer_key, call)
if given then
  local valid = {}
  for _, lease in ipairs(cjson.decode(given)) do
    if holds_lease(lease[1], lease[2]) then
      redis.call('ZADD', LEASED, 'XX', at + lease_ms, lease[1])
      valid[#valid + 1] = lease
    end
  end
  return valid
end

-- A poll that finds nothing must not cost a write each time.
local seen = redis.call('ZSCORE', WORKERS, worker)
if not seen or at - tonumber(seen) > 10000 then
  redis.call('ZADD', WORKERS, at, worker)
end
sweep(at, lease_ms, affinity_ms)
if redis.call('EXISTS', EPOCH) == 0 then
  redis.call('SET', EPOCH, ARGV[6])
end

local leases = {}
local function take(id)
  leases[#leases + 1] = grant(id, worker, instance, lease_ms, ARGV[first_nonce + #leases], at)
end

-- A process that asks under a worker's name with another instance is that worker started anew: what its
-- predecessor held need not wait for the deadline.
for i = first_have, #ARGV do
  local id = ARGV[i]
  if instance ~= '' and redis.call('HEXISTS', TOKEN, id) == 1 then
    local tries = tries_of(id)
    if tries.worker == worker and tries.instance ~= instance then
      expire(id, at, affinity_ms)
    end
  end
end

if redis.call('HEXISTS', ALONE, worker) == 1 then
  return leases
end
-- A busy farm has no worker that holds nothing: one at a time gets no new jobs until it does.
local function drains()
  redis.call('ZREMRANGEBYSCORE', DRAINING, '-inf', at)
  local chosen = redis.call('ZRANGE', DRAINING, 0, 0)[1]
  if chosen and chosen ~= worker then
    return false
  end
  redis.call('ZADD', DRAINING, at + math.max(lease_ms, DRAIN_MS), worker)
  return true
end

local waits = redis.call('LLEN', SUSPECT) > 0
if waits and redis.call('HEXISTS', HOLDS, worker) == 0 then
  local id = redis.call('LPOP', SUSPECT)
  take(id)
  redis.call('HSET', ALONE, worker, id)
  redis.call('ZREM', DRAINING, worker)
elseif not (waits and drains()) then
  for i = first_have, #ARGV do
    if #leases < count then
      local id = ARGV[i]
      if redis.call('ZREM', KEPT, id) == 1 then
        take(id)
      elseif redis.call('LPOS', READY, id, 'MAXLEN', 1000) then
        redis.call('LREM', READY, 1, id)
        take(id)
      end
    end
  end
  while #leases < count do
    local id = redis.call('LPOP', READY)
    if not id then
      break
    end
    take(id)
  end
end
if #leases > 0 then
  remember(answer_key, call, cjson.encode(leases))
end
return leases
