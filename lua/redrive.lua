-- redrive: failed jobs get all their attempts back, now. KEYS: the common ones. ARGV: ids.
-- Answers how many of them were dead or delayed.

local moved = 0
for _, id in ipairs(ARGV) do
  if redis.call('ZREM', DEAD, id) + redis.call('ZREM', DELAYED, id) > 0 then
    redis.call('ZREM', FAILED, id)
    redis.call('HDEL', TRIES, id)
    redis.call('RPUSH', READY, id)
    moved = moved + 1
  end
end
return moved
