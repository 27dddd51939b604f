-- sample: one step of the farm's history. KEYS: the common ones, sampled, history:<range> of each range.
-- ARGV: the speed of all workers together, what other shards have (pages done, failures, leases), then seconds of a step
-- and number of steps of each range, the shortest steps first. Answers whether it was due: of several servers the first one in each step takes it.

local sampled = KEYS[OWN + 1]
local GAP_STEPS = 3 -- after a longer silence nobody knows when it was that pages were finished
redis.call('ZREM', WORKERS, '') -- as in heartbeat.lua: this is taken also where memory is full
local at = now()

-- What is seen now is what was done in the step that has just ended.
local function step_of(range)
  return math.floor((at / 1000 - tonumber(ARGV[5])) / tonumber(ARGV[3 + 2 * range]))
end

local step = step_of(1)
local last = redis.call('HMGET', sampled, 'step', 'done', 'failures')
local last_step = tonumber(last[1])
if last_step == step then
  return 0
end

-- What was recorded again was not finished now, and what was forgotten was finished all the same.
local totals = redis.call('HMGET', TOTALS, 'done', 'replayed', 'failures', 'forgotten')
local done = tonumber(totals[1] or 0) - tonumber(totals[2] or 0) + tonumber(totals[4] or 0) + tonumber(ARGV[2])
local failures = tonumber(totals[3] or 0) + tonumber(ARGV[3])
redis.call('HSET', sampled, 'step', step, 'done', done, 'failures', failures)

-- The clock was set back: what lies ahead of it would be taken for true when it comes there again.
local function drop_what_lies_ahead(range)
  local ring = KEYS[OWN + 1 + range]
  local places = redis.call('HGETALL', ring)
  for i = 1, #places, 2 do
    if tonumber(string.match(places[i + 1], '^%d+')) > step_of(range) then
      redis.call('HDEL', ring, places[i])
    end
  end
end

local ranges = (#ARGV - 4) / 2
if last_step and last_step > step then
  for range = 1, ranges do
    drop_what_lies_ahead(range)
  end
end
if not last_step or last_step > step or step - last_step > GAP_STEPS then
  return 1
end

local news = {
  1, tonumber(ARGV[1]), math.max(0, done - tonumber(last[2])), math.max(0, failures - tonumber(last[3])),
  redis.call('ZCARD', LEASED) + tonumber(ARGV[4]) > 0 and 1 or 0,
}
for range = 1, ranges do
  local ring, number = KEYS[OWN + 1 + range], step_of(range)
  local place = number % tonumber(ARGV[4 + 2 * range])
  local old = {}
  for digits in string.gmatch(redis.call('HGET', ring, place) or '', '%d+') do
    old[#old + 1] = tonumber(digits)
  end
  local texts = { string.format('%.0f', number) }
  for i, new in ipairs(news) do
    texts[i + 1] = string.format('%.0f', new + (old[1] == number and old[i + 1] or 0))
  end
  redis.call('HSET', ring, place, table.concat(texts, ' '))
end
return 1
