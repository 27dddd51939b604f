-- expansion: a container whose jobs belong to several shards begins to be expanded. KEYS: the common ones, answer:<token>.
-- ARGV: id, token, a random name for this expansion.
-- Answers {the answer that this call was given before or '', origin or '', name of the expansion}, or false for a stale
-- token. Where counts are kept, the name stays until what was added under it is counted, whoever counts it in the end.

local answer_key = KEYS[OWN + 1]
local id, token, name = ARGV[1], ARGV[2], ARGV[3]

local given, is_ours = opened(answer_key, 'expand ' .. id, id, token)
if given then
  return { given, '', '' }
elseif not is_ours then
  return false
end
local tries = tries_of(id)
if not is_source(id) and redis.call('HEXISTS', LEDGER, id) == 0 then
  name = token
elseif tries.expansion then
  name = tries.expansion
else
  tries.expansion = name
  save_tries(id, tries)
end
return { '', redis.call('HGET', ORIGIN, id) or '', name }
