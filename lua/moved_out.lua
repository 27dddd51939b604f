-- moved_out: the first part of a list was put where it belongs, and is here no more. KEYS: the common ones, the list,
-- resharded. ARGV: the list, number of the part, how many entries it has. Answers whether it was still here.

if tonumber(redis.call('HGET', KEYS[OWN + 2], ARGV[1]) or 0) >= tonumber(ARGV[2]) then
  return 0
end
redis.call('LTRIM', KEYS[OWN + 1], ARGV[3], -1)
redis.call('HSET', KEYS[OWN + 2], ARGV[1], ARGV[2])
return 1
