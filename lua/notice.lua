-- notice: what is remembered of the notices changes. KEYS: the common ones, noticed.
-- ARGV: subject, what it was and what it is from now on, of each; an empty text is nothing.
-- Answers the subjects that were as they are said to have been: another server has changed the others.

redis.call('ZREM', WORKERS, '') -- as in heartbeat.lua: this is taken also where memory is full
local made = {}
for i = 1, #ARGV, 3 do
  local subject, before, after = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if (redis.call('HGET', KEYS[OWN + 1], subject) or '') == before then
    made[#made + 1] = subject
    if after == '' then
      redis.call('HDEL', KEYS[OWN + 1], subject)
    else
      redis.call('HSET', KEYS[OWN + 1], subject, after)
    end
  end
end
return made
