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
if redis.call('SADD', done_key, ARGV[3]) == 1 then
  redis.call('HINCRBY', TOTALS, 'done', 1)
  -- Always the same fields in the same order: a stream then stores their names once.
  redis.call('XADD', SUCCESS, '*', 'url', id, 'title', ARGV[4], 'path', ARGV[5], 'bytes', ARGV[6],
    'seconds', ARGV[7], 'worker', tries.worker or '')
end
return remember(answer_key, call, 'done')
