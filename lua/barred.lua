-- barred: whether a worker holds a suspect of this shard, or is about to. KEYS: the common ones. ARGV: worker.
-- Answers what stands, or false. Who has died between the bars and the lease is waited for for a while.

local BAR_MS = 15000
local standing = redis.call('HGET', ALONE, ARGV[1])
local made_at = standing and tonumber(string.match(standing, '^~%d+~(%d+)~'))
if made_at and math.abs(now() - made_at) > BAR_MS then
  redis.call('HDEL', ALONE, ARGV[1])
  return false
end
return standing
