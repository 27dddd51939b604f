-- claim: a source is queued and leased in one step, to whoever reads it at once. KEYS: the common ones,
-- answer:<request>, its seen and its closed bucket. ARGV: id, member, worker, lease_ms, nonce, an epoch in case there
-- is none, origin as JSON or '', 1 to read it only if its watch says that it is time. Answers as JSON the fields of a
-- lease; or 'open' where somebody reads it now, 'early' where it is not yet time.

local answer_key, seen_key, closed_key = KEYS[OWN + 1], KEYS[OWN + 2], KEYS[OWN + 3]
local id, member, worker, lease_ms, nonce = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local origin, if_due = ARGV[7], ARGV[8] == '1'
local at = now()

local call = 'claim ' .. id
local given = recall(answer_key, call)
if given then
  return given
end
local due = if_due and redis.call('ZSCORE', WATCH, id)
if due and tonumber(due) > at then
  return cjson.encode('early')
end
-- Where it waits it need not wait any longer. One that failed has failed for an earlier reader.
local function is_taken_from_its_place()
  local tries = tries_of(id)
  if leave_failed(id, tries) then
    begin_anew(id, tries)
    return true
  end
  if place_of(id, tries, seen_key, closed_key, member) ~= 'ready' then
    return false
  end
  leave_ready(id)
  return true
end

local new = redis.call('SADD', seen_key, member) == 1
if not new and redis.call('SREM', closed_key, member) == 0 and (if_due or not is_taken_from_its_place()) then
  if redis.call('HEXISTS', TOKEN, id) == 1 and not if_due then
    local tries = tries_of(id) -- its reader may be past the place where something new is
    tries.again = true
    save_tries(id, tries)
  end
  return remember(answer_key, call, cjson.encode('open'))
end
epoch(ARGV[6])
if due then
  origin = revisit_origin(id, at)
end
begin_source(id, origin)
if origin ~= '' then
  redis.call('HSET', ORIGIN, id, origin)
end
return remember(answer_key, call, cjson.encode(grant(id, tries_of(id), worker, '', lease_ms, nonce, at)))
