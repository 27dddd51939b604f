-- probe: the time of a parked group is over, and one of it tries. KEYS: the common ones, breaker of the group.
-- ARGV: worker, for how long it may try before it is another one's turn (ms). Answers 1 if it is this worker, else 0.

local breaker, worker, probe_ms = KEYS[OWN + 1], ARGV[1], tonumber(ARGV[2])
local OPEN_MS_AT_MOST = 6 * 3600 * 1000 -- what is further ahead is from before the clock was set back
redis.call('ZREM', WORKERS, '') -- as in heartbeat.lua: this is taken also where memory is full
local at = now()
local known = redis.call('HMGET', breaker, 'state', 'until', 'prober')
if known[1] == 'probed' and known[3] == worker then
  return 1
end
local left_ms = tonumber(known[2] or at) - at
if (known[1] ~= 'open' and known[1] ~= 'probed') or (left_ms > 0 and left_ms <= OPEN_MS_AT_MOST) then
  return 0
end
redis.call('HSET', breaker, 'state', 'probed', 'until', at + probe_ms, 'prober', worker)
return 1
