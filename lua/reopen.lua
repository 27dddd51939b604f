-- reopen: a container is forgotten where it is closed, because a page of it in another shard is. KEYS: the common ones, its
-- closed and its seen bucket. ARGV: its member. Answers whether it was closed.

if redis.call('SREM', KEYS[OWN + 1], ARGV[1]) == 1 then
  redis.call('SREM', KEYS[OWN + 2], ARGV[1])
  return 1
end
return 0
