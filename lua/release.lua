-- release: a worker says goodbye to a job; no attempt is counted and nobody waits. KEYS: the common ones,
-- answer:<token>. ARGV: id, token. Answers the state, or false for a stale token.

local answer_key = KEYS[OWN + 1]
local id, token = ARGV[1], ARGV[2]

local call = 'release ' .. id
local given = recall(answer_key, call)
if given then
  return given
end
if not holds_lease(id, token) then
  return false
end
local tries = tries_of(id)
end_lease(id, tries)
put_back(id, tries)
return remember(answer_key, call, 'ready')
