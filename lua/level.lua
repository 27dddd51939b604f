-- level: up to where each member of a group gets what it wants. KEYS: the common ones, budget of the group. ARGV: level.
-- It is computed in budgets.py from what the members want.

redis.call('ZREM', WORKERS, '') -- as in heartbeat.lua: this is taken also where memory is full
if redis.call('EXISTS', KEYS[OWN + 1]) == 1 then
  redis.call('HSET', KEYS[OWN + 1], 'level', ARGV[1], 'levelled', now())
end
return 1
