-- add: containers that a user asks for, each once. KEYS: the common ones, answer:<request>, then for each id its
-- seen bucket, and where known ones are asked or read again its closed one. ARGV: all to ask known ones again for new pages, sources to read known sources again,
-- origin as JSON or '', the same for sources, how often all of them are read again from now on or 0, then id and member
-- of each. Answers {added, known}.

local answer_key, first_bucket = KEYS[OWN + 1], OWN + 2
local first_id = 5
local keys_each = ARGV[1] == '' and 1 or 2
local watch_seconds = tonumber(ARGV[4])
local category = ARGV[2] ~= '' and cjson.decode(ARGV[2]).category or nil

local given = recall(answer_key, 'add')
if given then
  return cjson.decode(given)
end
local at = now()
local pushed = {}
local added, total = 0, (#ARGV - first_id + 1) / 2
for i = 0, total - 1 do
  local id, member = ARGV[first_id + 2 * i], ARGV[first_id + 2 * i + 1]
  local seen_key, closed_key = KEYS[first_bucket + keys_each * i], KEYS[first_bucket + keys_each * i + 1]
  local refresh = ARGV[1] == 'all' or (ARGV[1] == 'sources' and is_source(id))
  local new = redis.call('SADD', seen_key, member) == 1
  if new or (refresh and redis.call('SREM', closed_key, member) == 1) then
    local origin = is_source(id) and ARGV[3] or ARGV[2]
    if is_source(id) then
      begin_source(id, origin)
    end
    pushed[#pushed + 1] = id
    if origin ~= '' then
      redis.call('HSET', ORIGIN, id, origin)
    end
  elseif refresh and redis.call('HEXISTS', TOKEN, id) == 1 then
    local tries = tries_of(id) -- its worker may have read the pages before the new ones were there
    tries.again = true
    save_tries(id, tries)
  end
  if watch_seconds > 0 then
    watch(id, watch_seconds, at, not is_source(id) and category or nil)
  end
  if new then
    added = added + 1
  end
end
push('RPUSH', pushed)
local answer = { added, total - added }
remember(answer_key, 'add', cjson.encode(answer))
return answer
