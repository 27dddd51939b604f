-- lease: jobs for one worker. KEYS: the common ones, answer:<request>; of several shards the first one that is asked has
-- settled:<request> too.
-- ARGV: count, worker, instance, lease_ms, affinity_ms, an epoch in case there is none, which part of a request to
-- several shards this is, `count` nonces, ids that the worker has chunks of, how many bytes it has of each.
-- Answers {{id, token, origin, attempt}, …}; with several shards {state, those, whether the worker was long unheard of}.
--
-- The part is '' where there is one shard. With several it is `first`, `other`, `ordinary` (suspects are left alone),
-- `recall` (nothing is given that was not given before), or the mark of bar.lua under which this worker gets a suspect.
-- The states: `settled` and `begun` (see settle.lua), `recalled`, `given`; `alone` and `suspect`, which store/shards.py
-- resolves with the other shards, with the mark in place of the leases; and `drains`.
-- with turns

local answer_key = KEYS[OWN + 1]
local count, worker, instance = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local lease_ms, affinity_ms = tonumber(ARGV[4]), tonumber(ARGV[5])
local part = ARGV[7]
local first_nonce, first_have = 8, 8 + count
local haves = (#ARGV - first_have + 1) / 2
local last_have = first_have + haves - 1
local at = now()
local is_heard = 0

local function answered(state, leases)
  if part == '' then
    return leases
  end
  return { state, leases, is_heard }
end

local call = 'lease ' .. worker
local settled = part == 'first' and recall(KEYS[OWN + 2], call)
if settled == 'begun' then
  return answered('begun', {})
elseif settled then
  return answered('settled', settled)
end
local given = recall(answer_key, call)
if given then
  local valid = {}
  for _, lease in ipairs(cjson.decode(given)) do
    if holds_lease(lease[1], lease[2]) then
      redis.call('ZADD', LEASED, 'XX', at + lease_ms, lease[1])
      valid[#valid + 1] = lease
    end
  end
  return answered('recalled', valid)
end
if part == 'recall' then
  return answered('recalled', {})
end

-- A poll that finds nothing must not cost a write each time.
local seen = redis.call('ZSCORE', WORKERS, worker)
if not seen or at - tonumber(seen) > 10000 then
  redis.call('ZADD', WORKERS, at, worker)
  is_heard = 1
end
sweep(at, lease_ms, affinity_ms)
epoch(ARGV[6])

local leases = {}
local function take(id)
  local tries = tries_of(id)
  if tries.recorded then
    drop(id, tries)
    return
  end
  leases[#leases + 1] = grant(id, tries, worker, instance, lease_ms, ARGV[first_nonce + #leases], at)
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
    redis.call('ZREMRANGEBYRANK', STARTED, 0, -STARTED_LIMIT - 1)
    for i = first_have, last_have do
      credit(ARGV[i], tonumber(ARGV[i + haves]))
    end
  end
  local started = haves > 0 and tonumber(redis.call('ZSCORE', STARTED, worker .. ' ' .. instance))
  for i = first_have, last_have do
    if is_left_by_predecessor(ARGV[i], worker, instance, lease_ms, started) then
      expire(ARGV[i], at, affinity_ms)
    end
  end
end

-- Of several shards none knows alone whether a worker holds nothing: then nothing is given before that is known.
local is_bar = string.sub(part, 1, 1) == '~'
local alone = redis.call('HGET', ALONE, worker)
if alone and alone ~= part then
  return answered('alone', part == '' and {} or alone)
elseif is_bar and not alone then
  return answered('given', {})
end
local waits = part ~= 'ordinary' and redis.call('LLEN', SUSPECT) > 0
local holds_nothing = waits and redis.call('HEXISTS', HOLDS, worker) == 0
if part ~= '' and not is_bar and part ~= 'ordinary' then
  local drains_until = redis.call('ZSCORE', DRAINING, worker)
  if drains_until and tonumber(drains_until) > at and not waits then
    return answered('drains', '')
  elseif holds_nothing then
    return answered('suspect', '')
  end
end

if is_bar or holds_nothing then
  local id = redis.call('LPOP', SUSPECT)
  if id then
    take(id)
  end
  if #leases > 0 then
    redis.call('HSET', ALONE, worker, id)
    redis.call('ZREM', DRAINING, worker)
  end
elseif waits and drains(worker, at, lease_ms) then
  if part ~= '' then
    return answered('drains', 'here')
  end
else
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
if #leases == count and part == 'first' then
  remember(KEYS[OWN + 2], call, cjson.encode(leases)) -- no other shard is asked
end
if #leases > 0 then
  remember(answer_key, call, cjson.encode(leases))
end
return answered('given', leases)
