-- moved_in: a part of another shard's list is put behind what has come already. KEYS: the common ones, the list,
-- resharded. ARGV: which list of which shard, number of the part, then what is in it. Answers whether it was not here yet.

if tonumber(redis.call('HGET', KEYS[OWN + 2], ARGV[1]) or 0) >= tonumber(ARGV[2]) then
  return 0
end
for i = 3, #ARGV do
  redis.call('RPUSH', KEYS[OWN + 1], ARGV[i])
end
redis.call('HSET', KEYS[OWN + 2], ARGV[1], ARGV[2])
return 1
