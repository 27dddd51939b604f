-- died: workers that died with jobs of other shards, which excuses the jobs of this one. KEYS: the common ones.
-- ARGV: worker and instance, and how many ms ago, of each.

local at = now()
for i = 1, #ARGV, 2 do
  redis.call('ZADD', DEATHS, 'GT', at - tonumber(ARGV[i + 1]), ARGV[i])
end
return 1
