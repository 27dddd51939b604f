-- release: a worker says goodbye to a job; no attempt is counted and nobody waits. KEYS: the common ones,
-- answer:<token>. ARGV: id, token. Answers the state, or false for a stale token.

local answer_key = KEYS[OWN + 1]
local id, token = ARGV[1], ARGV[2]

local call = 'release ' .. id
local given, is_ours = opened(answer_key, call, id, token)
if not is_ours then
  return given or false
end
local tries = tries_of(id)
end_lease(id, tries)
put_back(id, tries)
return remember(answer_key, call, 'ready')
