-- hear: a worker has asked another shard for jobs. KEYS: the common ones. ARGV: worker.

redis.call('ZADD', WORKERS, now(), ARGV[1])
return 1
