-- entries: what many videos and pages leave behind, written with the steps of lua/common.lua that the verbs are made of.
-- KEYS: the common ones, then for each one its buckets. ARGV: kind, then the fields of each one. Any part may be repeated.
-- `done`: finished videos of one page each (add, lease, expand, ack), made from their numbers as entries.py does it: so
-- their keys are not declared. ARGV: first number, how many, when the first was finished, the step between two in ms, how
-- many buckets, how many categories, workers, sources and streams there are, the names of categories and of streams, then
-- title, title folded and the patterns of its paths in each category.
-- `dead` and `delayed`: a video that failed. KEYS of each: its seen. ARGV of each: id, member, code, reason, title, folded,
-- when in ms.
-- `source`: a ledger. KEYS of each: seen and closed. ARGV of each: id, listed.

local at = now()

local ALPHABET = 'FcwAPNKTMug3GV5Lj7EJnHpWsx4tb8haYeviqBz6rkCy12mUSDQX9RdoZf'
local PLACES = { 9, 8, 1, 6, 2, 4, 3, 5, 7 } -- as parse_.py has both, counted from 1
local HALF, XOR = 2 ^ 26, 23442827791579

local function bvid_of(aid)
  local value = aid + 2 ^ 51
  local high = bit.bxor(math.floor(value / HALF), math.floor(XOR / HALF))
  local rest, characters = high * HALF + bit.bxor(value % HALF, XOR % HALF), {}
  for _, place in ipairs(PLACES) do
    local digit = rest % 58
    characters[place] = string.sub(ALPHABET, digit + 1, digit + 1)
    rest = (rest - digit) / 58
  end
  return 'BV1' .. table.concat(characters)
end

local function whole(number)
  return string.format('%.0f', number)
end

local function done()
  local first, count, first_ms, step_ms = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
  local buckets, categories, workers = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
  local sources, streams = tonumber(ARGV[9]), tonumber(ARGV[10])
  local first_title = 11 + categories + streams
  local title_count = (#ARGV - first_title + 1) / (2 + categories)
  local prefix = string.match(READY, '^{[^}]*}:')
  for number = first, first + count - 1 do
    local chance = (number * 48271 + 11) % 2147483647
    local function draw(divisor, limit)
      return math.floor(chance / divisor) % limit
    end
    local aid, cid = 10 ^ 14 + number * 977 + chance % 977, 28 * 10 ^ 9 + number * 211 + chance % 211
    local aid_text, cid_text, category = whole(aid), whole(cid), draw(3, categories)
    local title = first_title + (2 + categories) * (chance % title_count)
    local in_video, in_page = whole(aid % buckets), whole(cid % buckets)
    redis.call('SADD', prefix .. 'seen:v:' .. in_video, aid_text)
    redis.call('SADD', prefix .. 'closed:v:' .. in_video, aid_text)
    redis.call('SADD', prefix .. 'seen:c:' .. in_page, cid_text)
    record(prefix .. 'done:' .. in_page, prefix .. 'record:' .. in_page, cid_text,
      bvid_of(aid) .. '?p=1&cid=' .. cid_text, {
        title = ARGV[title], folded = ARGV[title + 1], path = ARGV[title + 2 + category],
        bytes = whole(10 ^ 6 + chance), seconds = string.format('%.1f', 20 + draw(17, 40000) / 10),
        streams = ARGV[11 + categories + draw(7, streams)], worker = 'machine-' .. draw(5, workers), errors = '',
        category = ARGV[11 + category], source = chance % 2 == 1 and 'mid:' .. (draw(11, sources) + 1) or '',
      }, whole(first_ms + number * step_ms) .. '-0')
  end
  return count
end

local function failed(key, arg)
  if redis.call('SADD', KEYS[key], ARGV[arg + 1]) == 0 then
    return
  end
  local id, tries = ARGV[arg], { attempts = 1, deaths = 0, worker = 'w1' }
  entitle(id, tries, ARGV[arg + 4], ARGV[arg + 5])
  note_error(tries, at, ARGV[arg + 2], ARGV[arg + 3])
  if ARGV[1] == 'dead' then
    bury(id, tries, tonumber(ARGV[arg + 6]), ARGV[arg + 2], ARGV[arg + 3])
  else
    tries.code, tries.reason, tries.time = ARGV[arg + 2], ARGV[arg + 3], at
    save_tries(id, tries)
    redis.call('ZADD', DELAYED, ARGV[arg + 6], id)
    join_failed(id, tries, 'delayed')
  end
end

local function source(key, arg)
  redis.call('SADD', KEYS[key], ARGV[arg])
  redis.call('SADD', KEYS[key + 1], ARGV[arg])
  local ledger = ledger_of(ARGV[arg])
  ledger.title, ledger.listed, ledger.complete = 'A source', tonumber(ARGV[arg + 1]), true
  save_ledger(ARGV[arg], ledger)
end

if ARGV[1] == 'done' then
  return done()
end
local kinds = {
  dead = { failed, 1, 7 }, delayed = { failed, 1, 7 }, source = { source, 2, 2 },
}
local write, keys_each, args_each = unpack(kinds[ARGV[1]])
for i = 0, (#ARGV - 1) / args_each - 1 do
  write(OWN + 1 + keys_each * i, 2 + args_each * i)
end
return (#ARGV - 1) / args_each
