-- unbar: a worker may have jobs of this shard again. KEYS: the common ones. ARGV: worker, the mark that barred it.

if redis.call('HGET', ALONE, ARGV[1]) == ARGV[2] then
  redis.call('HDEL', ALONE, ARGV[1])
end
return 1
