-- ack: a page is done. KEYS: the common ones, answer:<token>, done:<bucket>,
-- record:<bucket>. ARGV: id, token, cid, title, title folded, path (its pattern), bytes, seconds, streams, and
-- where the file was delivered or ''. Answers the state, or false
-- for a stale token.

local answer_key, done_key, record_key = KEYS[OWN + 1], KEYS[OWN + 2], KEYS[OWN + 3]
local id, token = ARGV[1], ARGV[2]

local call = 'ack ' .. id
local given, is_ours = opened(answer_key, call, id, token)
if not is_ours then
  return given or false
end
local tries = tries_of(id)
local origin = cjson.decode(redis.call('HGET', ORIGIN, id) or '{}')
end_lease(id, tries)
drop(id, tries)
record(done_key, record_key, ARGV[3], id, {
  title = ARGV[4], folded = ARGV[5], path = ARGV[6], bytes = ARGV[7], seconds = ARGV[8], streams = ARGV[9],
  stored = ARGV[10],
  worker = tries.worker or '', errors = tries.errors and cjson.encode(tries.errors) or '',
  category = origin.category or '', source = origin.source or '', stored = ARGV[10],
})
return remember(answer_key, call, 'done')
