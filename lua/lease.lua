-- lease: jobs for one worker. KEYS: the common ones, answer:<request>.
-- ARGV: count, worker, instance, lease_ms, affinity_ms, an epoch in case there is none, `count` nonces, ids that
-- the worker has chunks of, how many bytes it has of each. Answers {{id, token, origin, attempt}, …}.

local answer_key = KEYS[OWN + 1]
local count, worker, instance = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local lease_ms, affinity_ms = tonumber(ARGV[4]), tonumber(ARGV[5])
local first_nonce, first_have = 7, 7 + count
local haves = (#ARGV - first_have + 1) / 2
local last_have = first_have + haves - 1
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
  local tries = tries_of(id)
  if tries.recorded then
    drop(id, tries)
    return
  end
  leases[#leases + 1] = grant(id, tries, worker, instance, lease_ms, ARGV[first_nonce + #leases], at)
end

-- A process that asks under a worker's name with another instance is that worker started anew: what its predecessor
-- held need not wait for the deadline. Unless that one has renewed the lease since: then two machines have one name.
local function is_left_by_predecessor(id)
  if redis.call('HEXISTS', TOKEN, id) == 0 then
    return false
  end
  local tries = tries_of(id)
  -- Ids of processes sort by their start: a late request of a dead one takes nothing from its successor.
  if tries.worker ~= worker or (tries.instance or '') >= instance then
    return false
  end
  local started = tonumber(redis.call('ZSCORE', STARTED, worker .. ' ' .. instance))
  return tonumber(redis.call('ZSCORE', LEASED, id)) - lease_ms <= started
end

-- The predecessor may have died before it could tell how far it came. Its death came after that, and counts.
local function credit(id, bytes)
  local tries = tries_of(id)
  if tries.worker ~= worker or bytes <= (tries.bytes or 0) + PROGRESS_BYTES then
    return
  end
  tries.bytes, tries.chunks = bytes, true
  local counted = redis.call('HEXISTS', TOKEN, id) == 0 and 1 or 0
  if tries.deaths > counted then
    forget_deaths(tries)
    tries.deaths, tries.first_death = counted, counted == 1 and at or nil
  end
  reconsider(id, tries)
end

if instance ~= '' then
  if redis.call('ZADD', STARTED, 'NX', at, worker .. ' ' .. instance) == 1 then
    for i = first_have, last_have do
      credit(ARGV[i], tonumber(ARGV[i + haves]))
    end
  end
  for i = first_have, last_have do
    if is_left_by_predecessor(ARGV[i]) then
      expire(ARGV[i], at, affinity_ms)
    end
  end
end

if redis.call('HEXISTS', ALONE, worker) == 1 then
  return leases
end
-- A busy farm has no worker that holds nothing: one at a time gets no new jobs until it does.
local function drains()
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

local waits = redis.call('LLEN', SUSPECT) > 0
if waits and redis.call('HEXISTS', HOLDS, worker) == 0 then
  local id = redis.call('LPOP', SUSPECT)
  take(id)
  if #leases > 0 then
    redis.call('HSET', ALONE, worker, id)
    redis.call('ZREM', DRAINING, worker)
  end
elseif not (waits and drains()) then
  for i = first_have, last_have do
    if #leases < count then
      local id = ARGV[i]
      if redis.call('ZREM', KEPT, id) == 1 then
        take(id)
      elseif pull(id, 1000) then
        take(id)
      end
    end
  end
  for _ = 1, count + SWEEP_LIMIT do
    local id = #leases < count and pop_ready()
    if not id then
      break
    end
    take(id)
  end
  -- What waits for this very worker, though it names it no more: its chunks are gone, or have become a file.
  local kept = #leases < count and redis.call('ZRANGE', KEPT, 0, SWEEP_LIMIT - 1) or {}
  for _, id in ipairs(kept) do
    if #leases < count and tries_of(id).worker == worker then
      redis.call('ZREM', KEPT, id)
      take(id)
    end
  end
end
if #leases > 0 then
  remember(answer_key, call, cjson.encode(leases))
end
return leases
