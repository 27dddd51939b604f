-- revisit: watched sources and videos whose time has come are queued. KEYS: the common ones, then the seen and the
-- closed bucket of each.
-- ARGV: id and member of each. Answers how many were queued.

local DEAD_MS = 24 * 3600 * 1000 -- one that has failed for good is tried again after so long
local at, queued = now(), 0
for i = 1, #ARGV / 2 do
  local id, member = ARGV[2 * i - 1], ARGV[2 * i]
  local due = redis.call('ZSCORE', WATCH, id)
  if due and tonumber(due) <= at then
    redis.call('ZADD', WATCH, at + ledger_of(id).watched * 1000, id)
    local died_at, tries = redis.call('ZSCORE', DEAD, id), tries_of(id)
    local new = redis.call('SADD', KEYS[OWN + 2 * i - 1], member) == 1
    if new or redis.call('SREM', KEYS[OWN + 2 * i], member) == 1 then
      local origin = revisit_origin(id, at)
      if is_source(id) then
        begin_source(id, origin)
      end
      if origin ~= '' then
        redis.call('HSET', ORIGIN, id, origin)
      end
      push_tail(id)
      queued = queued + 1
    elseif died_at and at - tonumber(died_at) > DEAD_MS and tries.code ~= CANCELLED then
      leave_failed(id, tries)
      begin_anew(id, tries)
      push_tail(id)
      queued = queued + 1
    end
  end
end
return queued
