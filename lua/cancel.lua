-- cancel: jobs are wanted no more, until they are redriven. What a container has brought stays. KEYS: the common ones,
-- then for each id its seen bucket, and its done or closed one. ARGV: id and member of each. Answers how many there were.

-- One that is leased is taken away: its worker hears of it with the next heartbeat.
local function is_taken(id, tries, place)
  if place == 'leased' then
    end_lease(id, tries)
  elseif place == 'kept' then
    redis.call('ZREM', KEPT, id)
  elseif place == 'suspect' then
    redis.call('LREM', SUSPECT, 1, id)
  elseif place == 'ready' then
    leave_ready(id)
  elseif place == 'delayed' or (place == 'dead' and tries.code ~= CANCELLED) then
    leave_failed(id, tries)
  else
    return false
  end
  return true
end

local at, cancelled = now(), 0
for i = 0, #ARGV / 2 - 1 do
  local id, member = ARGV[2 * i + 1], ARGV[2 * i + 2]
  local tries = tries_of(id)
  if is_taken(id, tries, place_of(id, tries, KEYS[OWN + 2 * i + 1], KEYS[OWN + 2 * i + 2], member)) then
    bury(id, tries, at, CANCELLED, 'It was cancelled.')
    cancelled = cancelled + 1
  end
end
return cancelled
