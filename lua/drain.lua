-- drain: a worker gets nothing new until it holds nothing, because a suspect needs it. KEYS: the common ones.
-- ARGV: worker, lease_ms, and choose where the suspect waits in this shard and its worker is chosen here; drain or stop
-- where that was decided elsewhere. Answers whether it drains.
-- with turns

local worker, at = ARGV[1], now()

if ARGV[3] == 'choose' then
  return redis.call('LLEN', SUSPECT) > 0 and drains(worker, at, tonumber(ARGV[2])) and 1 or 0
elseif ARGV[3] == 'drain' then
  redis.call('ZADD', DRAINING, at + DRAIN_MS, worker)
  return 1
end
redis.call('ZREM', DRAINING, worker)
return 0
