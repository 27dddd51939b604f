-- adopt: what an earlier version has written is put where this one looks for it. KEYS: the common ones, the list of
-- failed jobs as it was, then record:<bucket> of each page that is done. ARGV: number of failed jobs, id and title folded
-- of each; cid, entry and url and title folded of each page. Any part may be repeated.

local old_key, failed = KEYS[OWN + 1], tonumber(ARGV[1])
for i = 0, failed - 1 do
  local id, folded = ARGV[2 + 2 * i], ARGV[3 + 2 * i]
  local state = (redis.call('ZSCORE', DEAD, id) and 'dead') or (redis.call('ZSCORE', DELAYED, id) and 'delayed')
  if redis.call('ZREM', old_key, id) == 1 and state then
    local tries = tries_of(id)
    if tries.title and not tries.folded then
      tries.folded = folded
      save_tries(id, tries)
      redis.call('ZADD', TITLES, 0, folded .. '\0' .. id)
    end
    join_failed(id, tries, state)
  end
end
local first_page = 2 + 2 * failed
for i = 0, (#ARGV - first_page + 1) / 4 - 1 do
  local cid, entry, id = ARGV[first_page + 4 * i], ARGV[first_page + 4 * i + 1], ARGV[first_page + 4 * i + 2]
  if redis.call('HEXISTS', KEYS[OWN + 2 + i], cid) == 0 then
    note_record(KEYS[OWN + 2 + i], cid, entry)
    entitle_done(id, ARGV[first_page + 4 * i + 3])
  end
end
