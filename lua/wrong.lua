-- wrong: an address has said a wrong token, or a wrong code. KEYS: the common ones, wrong:<whose>.
-- ARGV: a mark of what it said, how often the same, and how many different ones, it may say in so many ms, and
-- `look` where nothing is to be noted.
-- Answers 0 where that may be called wrong, else for how many ms the address has to wait. What is too much is not noted.

local wrong_key, mark, limit, window_ms = KEYS[OWN + 1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

local same = tonumber(redis.call('HGET', wrong_key, mark) or 0)
local different = redis.call('HLEN', wrong_key)
if math.max(same, different) >= limit then
  return math.max(1, redis.call('PTTL', wrong_key))
end
if ARGV[4] == 'look' then
  return 0
end
redis.call('HSET', wrong_key, mark, same + 1)
if same + different == 0 then
  redis.call('PEXPIRE', wrong_key, window_ms)
end
return 0
