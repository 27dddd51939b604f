-- close: the site has answered the worker that tried for its group, and all of it go on. KEYS: the common ones, breaker
-- of the group, breakers. ARGV: group, worker. What there was of refusals is remembered for a while, so that the next one
-- parks for longer. Answers 1 if it was closed, else 0.

local breaker, breakers, group, worker = KEYS[OWN + 1], KEYS[OWN + 2], ARGV[1], ARGV[2]
redis.call('ZREM', WORKERS, '') -- as in heartbeat.lua: this is taken also where memory is full
local known = redis.call('HMGET', breaker, 'state', 'prober')
if known[1] ~= 'probed' or known[2] ~= worker then
  return 0
end
redis.call('HSET', breaker, 'state', 'closed', 'prober', '')
redis.call('ZREM', breakers, group)
return 1
