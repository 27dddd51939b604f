-- peek: whether a lease request may find something in this shard. KEYS: the common ones. ARGV: worker, instance, lease_ms,
-- ids that the worker has chunks of. Answers 2 where a suspect waits, 1 where something else may, or 0. Writes nothing.
-- with turns

local worker, instance, lease_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])

local function waits_for(id)
  if redis.call('ZSCORE', KEPT, id) then
    return true
  end
  local started = redis.call('ZSCORE', STARTED, worker .. ' ' .. instance)
  return instance ~= '' and is_left_by_predecessor(id, worker, instance, lease_ms, tonumber(started or now()))
end

if redis.call('LLEN', SUSPECT) > 0 then
  return 2
elseif redis.call('LLEN', READY) > 0 then
  return 1
end
if #ARGV > 3 and instance ~= '' and not redis.call('ZSCORE', STARTED, worker .. ' ' .. instance) then
  return 1 -- a new process tells how far its predecessor came
end
for i = 4, #ARGV do
  if waits_for(ARGV[i]) then
    return 1
  end
end
for _, id in ipairs(redis.call('ZRANGE', KEPT, 0, SWEEP_LIMIT - 1)) do
  if tries_of(id).worker == worker then
    return 1
  end
end
return 0
