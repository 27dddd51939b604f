-- budget: how often a worker may ask the site. KEYS: the common ones, then budget, members and breaker of each group.
-- ARGV: worker, for how long it counts (ms), what it obeys now and what it wants, '1' if it goes, then the budget of each
-- group, 0 for none. Rates are whole millionths of a request in a second, so that a sum of them is exact.
-- A worker counts with the most that it may be using: what it obeys, until it is known to have heard of less.
-- Answers as JSON what it may, -1 where nothing limits it; then of each group: how many members have to be looked at for
-- a new level, 0 for none; and of its breaker the state or '', ms that are left, failures, kind and prober.

local worker, counted_ms, obeyed, wanted = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local is_going, first_budget = ARGV[5] == '1', 6
local EXPIRED_LIMIT = 100 -- so many members are let go in one call
local LEVEL_MS, MEMBER_MS = 1000, 5 -- a level is as old as this at most, and older where many members are looked at
local NEWS_MEMBERS = 64 -- with more of them one more is no reason for a new level
local LEAST_MEMBERS, TRICKLE_SHARE = 20, 4 -- as in budgets.py
local OPEN_MS_AT_MOST = 6 * 3600 * 1000 -- as web/messages.py takes it
redis.call('ZREM', WORKERS, '') -- as in heartbeat.lua: this is taken also where memory is full
local at = now()

local function read_member(group, name)
  local text = redis.call('HGET', group.key, 'w ' .. name)
  if not text then
    return nil
  end
  return tonumber(string.match(text, '^(%d+) '))
end

local function let_go(group, name)
  redis.call('ZREM', group.members, name)
  local counted = read_member(group, name)
  if counted then
    redis.call('HINCRBY', group.key, 'sum', -counted)
    redis.call('HDEL', group.key, 'w ' .. name)
  end
end

local function look(group)
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', group.members, '-inf', at, 'LIMIT', 0, EXPIRED_LIMIT)) do
    let_go(group, name)
  end
  -- From before the clock was set back: they count from now on.
  for _, name in
    ipairs(redis.call('ZRANGEBYSCORE', group.members, '(' .. at + counted_ms, '+inf', 'LIMIT', 0, EXPIRED_LIMIT))
  do
    redis.call('ZADD', group.members, at + counted_ms, name)
  end
  local own = read_member(group, worker)
  group.is_new = own == nil
  group.others = tonumber(redis.call('HGET', group.key, 'sum') or 0) - (own or 0)
  group.count = redis.call('ZCARD', group.members) + (own and 0 or 1)
  group.trickle = math.floor(group.budget / math.max(LEAST_MEMBERS, TRICKLE_SHARE * group.count))
  group.level = tonumber(redis.call('HGET', group.key, 'level') or group.budget - math.floor(group.budget / LEAST_MEMBERS))
end

local function share_of(group)
  local free = math.max(0, group.budget - group.others)
  if group.is_new and group.others > 0 then
    free = math.floor(free / 2) -- another one may come before the first ones have heard of less
  end
  return math.min(math.max(wanted, group.trickle), group.level, free)
end

-- What it wants of one group is no more than another one lets it have.
local function need_of(group, groups)
  local need = wanted
  for _, other in ipairs(groups) do
    if other ~= group then
      need = math.min(need, math.max(other.level, other.trickle))
    end
  end
  return need
end

local function is_stale(group)
  local levelled = tonumber(redis.call('HGET', group.key, 'levelled') or 0)
  local age_ms = math.abs(at - levelled)
  return age_ms > LEVEL_MS + MEMBER_MS * group.count or (group.is_new and group.count <= NEWS_MEMBERS)
end

local groups, limited = {}, {}
for i = OWN + 1, #KEYS, 3 do
  local budget = tonumber(ARGV[first_budget + (i - OWN - 1) / 3])
  local group = { key = KEYS[i], members = KEYS[i + 1], breaker = KEYS[i + 2], budget = budget, count = 0 }
  groups[#groups + 1] = group
  if is_going then
    let_go(group, worker)
  elseif budget > 0 then
    look(group)
    limited[#limited + 1] = group
  end
end

local granted = -1
for _, group in ipairs(limited) do
  local share = share_of(group)
  granted = granted < 0 and share or math.min(granted, share)
end
local answer = { granted }
for _, group in ipairs(groups) do
  local members = 0
  if group.level then
    -- Of what it says that it obeys no more is believed than it was told, or the sum could grow by a word.
    local before = read_member(group, worker) or 0
    local counted = math.max(granted, math.min(obeyed, before))
    redis.call('HSET', group.key, 'w ' .. worker, counted .. ' ' .. need_of(group, limited), 'sum', group.others + counted)
    redis.call('ZADD', group.members, at + counted_ms, worker)
    redis.call('PEXPIRE', group.key, counted_ms * 2)
    redis.call('PEXPIRE', group.members, counted_ms * 2)
    members = is_stale(group) and group.count or 0
  end
  local open = redis.call('HMGET', group.breaker, 'state', 'until', 'failures', 'kind', 'prober')
  local left_ms = math.max(0, tonumber(open[2] or at) - at)
  if left_ms > OPEN_MS_AT_MOST then
    left_ms = 0 -- from before the clock was set back
  end
  local state = open[1] ~= 'closed' and open[1] or ''
  answer[#answer + 1] = { members, state, left_ms, tonumber(open[3] or 0), open[4] or '', open[5] or '' }
end
return cjson.encode(answer)
