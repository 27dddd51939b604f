-- admit: a token is known from now on. KEYS: the common ones, tokens, bound, and for a machine that joins join:<digest>.
-- ARGV: id, JSON of the token, the name of the worker that joins or ''. Answers made; wrong where there is no such code, or
-- taken where that name belongs to another token: the code is good for another name then.

local tokens_key, bound_key, join_key = KEYS[OWN + 1], KEYS[OWN + 2], KEYS[OWN + 3]
local id, token, worker = ARGV[1], ARGV[2], ARGV[3]

if redis.call('HGET', tokens_key, id) == token then
  return 'made' -- the answer was lost
end
if join_key and redis.call('EXISTS', join_key) == 0 then
  return 'wrong'
end
if worker ~= '' and redis.call('HEXISTS', bound_key, worker) == 1 then
  return 'taken'
end
redis.call('HSET', tokens_key, id, token) -- a full memory refuses the first write only, and the code stays good
if join_key then
  redis.call('DEL', join_key)
end
return 'made'
