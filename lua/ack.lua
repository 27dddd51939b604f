-- ack: a page is done. KEYS: the common ones, answer:<token>, done:<bucket>.
-- ARGV: id, token, cid, title, path, bytes, seconds. Answers the state, or false for a stale token.

local answer_key, done_key = KEYS[OWN + 1], KEYS[OWN + 2]
local id, token = ARGV[1], ARGV[2]

local call = 'ack ' .. id
local given, is_ours = opened(answer_key, call, id, token)
if not is_ours then
  return given or false
end
local tries = tries_of(id)
end_lease(id, tries)
forget(id)
record(done_key, ARGV[3], id, ARGV[4], ARGV[5], ARGV[6], ARGV[7], tries.worker or '')
return remember(answer_key, call, 'done')
