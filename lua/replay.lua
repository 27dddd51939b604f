-- replay: what a worker has finished, told again because the queue does not know of it: its data were set back, or
-- are new. KEYS: the common ones, then done:<bucket>, record:<bucket> and seen:c:<bucket>
-- of each page. ARGV: worker, then id, cid, title, title folded, path (its pattern), bytes, seconds, streams and
-- where it was delivered, or '', of each page. Answers
-- how many were not recorded.

local worker, recorded = ARGV[1], 0
local at = now()
for i = 0, (#ARGV - 1) / 9 - 1 do
  local first, first_key = 2 + 9 * i, OWN + 1 + 3 * i
  local id, cid = ARGV[first], ARGV[first + 1]
  -- What a user had forgotten is not lost.
  local is_lost = not redis.call('ZSCORE', FORGOTTEN, cid)
  if is_lost and record(KEYS[first_key], KEYS[first_key + 1], cid, id, {
    title = ARGV[first + 2], folded = ARGV[first + 3], path = ARGV[first + 4], bytes = ARGV[first + 5],
    seconds = ARGV[first + 6], streams = ARGV[first + 7], worker = worker, errors = '', category = '', source = '',
    stored = ARGV[first + 8],
  }) then
    recorded = recorded + 1
    if redis.call('SADD', KEYS[first_key + 2], cid) == 0 then
      drop_recorded(id)
    end
  end
end
if recorded > 0 then
  redis.call('HINCRBY', TOTALS, 'replayed', recorded)
  redis.call('HSET', TOTALS, 'replayed_at', string.format('%.0f', at))
end
return recorded
