-- forget: dead or done jobs leave the queue's memory, so that they may be added again. The containers that a page came
-- from are forgotten with it where they are closed: or they would be known, and not read again. KEYS: the common ones,
-- then for each id its seen bucket, its done or closed one, its record bucket, and closed and seen of two containers.
-- ARGV: each id, its member, its cid or '', its entry in TITLES or '', and the members of two containers or ''.
-- Answers how many there were.

local KEYS_EACH, ARGS_EACH = 7, 6

-- One that was recorded apart from its lease still stands in a list.
local function leave_list(id, tries)
  if tries.deaths >= SUSPECT_DEATHS then
    redis.call('LREM', SUSPECT, 1, id)
  else
    leave_ready(id)
  end
end

local function drop_record(record_key, cid, title_entry, at)
  local entry = redis.call('HGET', record_key, cid)
  if entry then -- else it is in an archive, and whoever reads that asks here whether the page is done
    redis.call('XDEL', SUCCESS, string.find(entry, '-', 1, true) and entry or entry .. '-0')
    redis.call('HDEL', record_key, cid)
  end
  redis.call('HINCRBY', TOTALS, 'done', -1)
  redis.call('HINCRBY', TOTALS, 'forgotten', 1)
  redis.call('ZREM', TITLES, title_entry)
  -- Workers tell what the queue has lost: this it has not.
  redis.call('ZADD', FORGOTTEN, at, cid)
  redis.call('ZREMRANGEBYRANK', FORGOTTEN, 0, -FORGOTTEN_LIMIT - 1)
end

local at, forgotten = now(), 0
for i = 0, #ARGV / ARGS_EACH - 1 do
  local first, first_key = ARGS_EACH * i, OWN + KEYS_EACH * i
  local id, member, cid, title_entry = ARGV[first + 1], ARGV[first + 2], ARGV[first + 3], ARGV[first + 4]
  local seen_key, ended_key, record_key = KEYS[first_key + 1], KEYS[first_key + 2], KEYS[first_key + 3]
  local tries = tries_of(id)
  local place = place_of(id, tries, seen_key, ended_key, member)
  if place == 'dead' or place == 'done' then
    redis.call('SREM', seen_key, member)
    redis.call('SREM', ended_key, member)
    if place == 'dead' then
      leave_failed(id, tries)
    elseif tries.recorded then
      leave_list(id, tries)
    end
    drop(id, tries)
    if cid == '' then
      drop_ledger(id)
      redis.call('ZREM', WATCH, id)
    elseif place == 'done' then
      drop_record(record_key, cid, title_entry, at)
    end
    for one = 0, 1 do
      local container = ARGV[first + 5 + one]
      if container ~= '' and redis.call('SREM', KEYS[first_key + 4 + 2 * one], container) == 1 then
        redis.call('SREM', KEYS[first_key + 5 + 2 * one], container)
      end
    end
    forgotten = forgotten + 1
  end
end
return forgotten
