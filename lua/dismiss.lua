-- dismiss: a token is none any more. KEYS: the common ones, tokens, bound, revoked. ARGV: its id.
-- Answers whether there was one. That it was revoked is remembered until no server can believe in it any more, so that what
-- is leased to it meanwhile comes back too (store/tokens.py).

local tokens_key, bound_key, revoked_key = KEYS[OWN + 1], KEYS[OWN + 2], KEYS[OWN + 3]
local id = ARGV[1]

local was_there = redis.call('HDEL', tokens_key, id) -- is taken also where memory is full
if was_there == 1 then
  local bound = redis.call('HGETALL', bound_key)
  for i = 1, #bound, 2 do
    if bound[i + 1] == id then
      redis.call('HDEL', bound_key, bound[i])
      redis.call('ZREM', WORKERS, bound[i]) -- it is no machine of the farm any more, and its name is free
      redis.call('HDEL', STATUS, bound[i])
    end
  end
  redis.call('ZADD', revoked_key, now(), id)
end
return was_there
