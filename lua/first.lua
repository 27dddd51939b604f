-- first: jobs that wait come next, in the order in which they are named. KEYS: the common ones, then for each id its seen
-- bucket, and its done or closed one. ARGV: id and member of each. Answers how many of them waited.

local moved = 0
for i = #ARGV / 2 - 1, 0, -1 do
  local id, member = ARGV[2 * i + 1], ARGV[2 * i + 2]
  local tries = tries_of(id)
  local place = place_of(id, tries, KEYS[OWN + 2 * i + 1], KEYS[OWN + 2 * i + 2], member)
  local is_suspect = tries.deaths >= SUSPECT_DEATHS
  if place == 'kept' then
    redis.call('ZREM', KEPT, id)
  elseif place == 'delayed' then
    leave_failed(id, tries)
  elseif place == 'suspect' then
    redis.call('LREM', SUSPECT, 1, id)
  end
  if place == 'ready' then
    come_first(id)
  elseif place == 'kept' or place == 'delayed' or place == 'suspect' then
    if is_suspect then
      redis.call('LPUSH', SUSPECT, id)
    else
      push_head(id)
    end
  end
  if place == 'ready' or place == 'kept' or place == 'delayed' or place == 'suspect' then
    moved = moved + 1
  end
end
return moved
