-- take: the first new page of a container that was expanded is leased to who did it, if it still waits. KEYS: the common
-- ones, answer:<token>:take with the token of the container's lease.
-- ARGV: id, worker, instance, lease_ms, nonce, an epoch in case there is none. Answers the fields of a lease as JSON, or
-- false as JSON where somebody else was quicker, or the worker holds a suspect.

local answer_key, id, worker = KEYS[OWN + 1], ARGV[1], ARGV[2]
local at = now()

local call = 'take ' .. id
local given = recall(answer_key, call)
if given then
  return given
end
local lease = false
if redis.call('HEXISTS', ALONE, worker) == 0 and pull(id, STALE_LIMIT) then
  local tries = tries_of(id)
  if tries.recorded then
    drop(id, tries)
  else
    epoch(ARGV[6])
    if ARGV[3] ~= '' then
      redis.call('ZADD', STARTED, 'NX', at, worker .. ' ' .. ARGV[3])
    end
    lease = grant(id, tries, worker, ARGV[3], tonumber(ARGV[4]), ARGV[5], at)
  end
end
return remember(answer_key, call, cjson.encode(lease))
