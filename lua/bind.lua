-- bind: a worker's name belongs to the token that used it first. KEYS: the common ones, bound, tokens.
-- ARGV: id of the token, worker, lease_ms, how many names a token may have, '1' if that worker has leases in other shards.
-- Answers bound; taken (by another token), alive (somebody works under that name without a token of its own), many, or
-- gone (there is no such token).

local bound_key, tokens_key = KEYS[OWN + 1], KEYS[OWN + 2]
local id, worker, lease_ms, limit = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local HEARD_MS = 10000 -- lease.lua notes who asks no more often than that

-- Who takes the name of one that works could have given back what that one holds.
local function is_alive()
  local seen = redis.call('ZSCORE', WORKERS, worker)
  if not seen or now() - tonumber(seen) > lease_ms + HEARD_MS then
    return false
  end
  local status = cjson.decode(redis.call('HGET', STATUS, worker) or '{}')
  return status.state ~= 'ended' or ARGV[5] == '1' or redis.call('HEXISTS', HOLDS, worker) == 1
end

if redis.call('HEXISTS', tokens_key, id) == 0 then
  return 'gone'
end
local owner = redis.call('HGET', bound_key, worker)
if owner then
  return owner == id and 'bound' or 'taken'
end
if is_alive() then
  return 'alive'
end
local names = 0
for _, one in ipairs(redis.call('HVALS', bound_key)) do
  if one == id then
    names = names + 1
  end
end
if names >= limit then
  return 'many'
end
redis.call('HSET', bound_key, worker, id)
return 'bound'
