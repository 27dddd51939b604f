-- trip: the site has refused a worker, and its group is parked. KEYS: the common ones, breaker of the group, breakers.
-- ARGV: group, what the site said, for how long it said so (ms, 0 where it did not), how long a group is remembered after
-- that (ms), then for how long it is parked after each refusal in a row (ms). Answers for how long it is parked (ms).

local breaker, breakers = KEYS[OWN + 1], KEYS[OWN + 2]
local group, kind, said_ms, remembered_ms, first_delay = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), 5
redis.call('ZREM', WORKERS, '') -- as in heartbeat.lua: this is taken also where memory is full
local at = now()
local known = redis.call('HMGET', breaker, 'state', 'until', 'failures')
local left_ms, failures = tonumber(known[2] or at) - at, tonumber(known[3] or 0)
local longest_ms = math.max(said_ms, tonumber(ARGV[#ARGV]))

local open_ms
if known[1] == 'open' and left_ms > 0 and left_ms <= longest_ms then
  open_ms = math.max(left_ms, said_ms) -- these were asked before it opened
else
  failures = failures + 1
  open_ms = math.max(said_ms, tonumber(ARGV[math.min(first_delay + failures - 1, #ARGV)]))
end
redis.call('HSET', breaker, 'state', 'open', 'until', at + open_ms, 'failures', failures, 'kind', kind, 'prober', '')
redis.call('PEXPIRE', breaker, open_ms + remembered_ms)
redis.call('ZREMRANGEBYSCORE', breakers, '-inf', at)
redis.call('ZADD', breakers, at + open_ms + remembered_ms, group)
return open_ms
