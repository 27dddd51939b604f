-- replay: what a worker has finished, told again because the queue does not know of it: its data were set back, or
-- are new. KEYS: the common ones, then done:<bucket> and seen:c:<bucket> of each page.
-- ARGV: worker, then id, cid, title, path, bytes and seconds of each page. Answers how many were not recorded.

local worker, recorded = ARGV[1], 0
local at = now()
for i = 0, (#ARGV - 1) / 6 - 1 do
  local first = 2 + 6 * i
  local id, cid = ARGV[first], ARGV[first + 1]
  local title, path, bytes, seconds = ARGV[first + 2], ARGV[first + 3], ARGV[first + 4], ARGV[first + 5]
  if record(KEYS[OWN + 1 + 2 * i], cid, id, title, path, bytes, seconds, worker) then
    recorded = recorded + 1
    if redis.call('SADD', KEYS[OWN + 2 + 2 * i], cid) == 0 then
      drop_recorded(id)
    end
  end
end
if recorded > 0 then
  redis.call('HINCRBY', TOTALS, 'replayed', recorded)
  redis.call('HSET', TOTALS, 'replayed_at', string.format('%.0f', at))
end
return recorded
