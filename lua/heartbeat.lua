-- heartbeat: a worker is alive and keeps its leases. KEYS: the common ones.
-- ARGV: worker, lease_ms, status as JSON, then for each job id, token, and 1 if it has chunks on disk.
-- Answers the ids whose lease is no longer this one.

local worker, lease_ms, lost = ARGV[1], tonumber(ARGV[2]), {}
local at = now()
redis.call('ZADD', WORKERS, at, worker)
redis.call('HSET', STATUS, worker, ARGV[3])
for i = 4, #ARGV, 3 do
  local id, token, has_chunks = ARGV[i], ARGV[i + 1], ARGV[i + 2] == '1'
  if holds_lease(id, token) then
    redis.call('ZADD', LEASED, 'XX', at + lease_ms, id)
    if has_chunks then
      local tries = tries_of(id)
      if not tries.chunks then
        tries.chunks = true
        save_tries(id, tries)
      end
    end
  else
    forgive(id, token)
    lost[#lost + 1] = id
  end
end
return lost
