-- nack: an attempt failed. KEYS: the common ones, answer:<token>.
-- ARGV: id, token, class, code, reason, title, title folded, then a delay in ms for each failure that is allowed; the
-- site's own wish, if there was one, is already in all of them. Of class waiting any number is allowed, the last delay
-- holds on.
-- Answers the new state, or false for a stale token.

local answer_key = KEYS[OWN + 1]
local id, token, class, code, reason, title = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local first_delay = 8

local call = 'nack ' .. id
local given, is_ours = opened(answer_key, call, id, token)
if not is_ours then
  return given or false
end
local at = now()
local tries = tries_of(id)
end_lease(id, tries)
entitle(id, tries, title, ARGV[7])
note_error(tries, at, code, reason)
if class == 'environment' then
  tries.code, tries.reason, tries.time = code, reason, at
  tries.environment = (tries.environment or 0) + 1
  save_tries(id, tries)
  if tries.environment > 1 and tries.deaths < SUSPECT_DEATHS then
    push_tail(id) -- not at the head again: others must have their turn on a machine that it does not suit
  else
    put_back(id, tries)
  end
  return remember(answer_key, call, 'ready')
end
local delay
if class == 'waiting' then
  tries.waits = (tries.waits or 0) + 1
  delay = ARGV[math.min(first_delay + tries.waits - 1, #ARGV)]
else
  tries.attempts = tries.attempts + 1
  redis.call('HINCRBY', TOTALS, 'failures', 1)
  delay = ARGV[first_delay + tries.attempts - 1]
end
if class == 'permanent' or not delay then
  bury(id, tries, at, code, reason)
  return remember(answer_key, call, 'dead')
end
tries.code, tries.reason, tries.time = code, reason, at
save_tries(id, tries)
redis.call('ZADD', DELAYED, at + tonumber(delay), id)
join_failed(id, tries, 'delayed')
return remember(answer_key, call, 'delayed')
