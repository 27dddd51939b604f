-- release: a worker says goodbye to a job; no attempt is counted and nobody waits. KEYS: the common ones,
-- answer:<token>. ARGV: id, token, for how long in ms it is kept for this worker, which has its file. Answers the state,
-- or false for a stale token.

local answer_key = KEYS[OWN + 1]
local id, token, kept_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])

local call = 'release ' .. id
local given, is_ours = opened(answer_key, call, id, token)
if not is_ours then
  return given or false
end
local tries = tries_of(id)
end_lease(id, tries)
if kept_ms > 0 then
  tries.chunks = true
  save_tries(id, tries)
end
put_back_kept(id, tries, now(), kept_ms)
return remember(answer_key, call, 'ready')
