-- bar: a worker is to hold a suspect and nothing else, in any shard. KEYS: the common ones.
-- ARGV: worker, the mark of who holds it or '', the shard and a random id where the mark is to be made here.
-- Answers the mark where the worker holds nothing here and gets nothing more; else '' where it holds something, or
-- another mark that bars it already. Where the mark is made, '' also if no suspect waits.

local worker, mark = ARGV[1], ARGV[2]
local standing = redis.call('HGET', ALONE, worker)

if standing and standing ~= mark then
  return standing
elseif redis.call('HEXISTS', HOLDS, worker) == 1 then
  return ''
elseif mark == '' then
  if redis.call('LLEN', SUSPECT) == 0 then
    return ''
  end
  mark = '~' .. ARGV[3] .. '~' .. string.format('%.0f', now()) .. '~' .. ARGV[4]
end
redis.call('HSET', ALONE, worker, mark)
redis.call('ZREM', DRAINING, worker)
return mark
