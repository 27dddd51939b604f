-- What heartbeat and renew share.

-- Renew the leases that ARGV names from `first` on: for each job id, token, how many bytes of it are on disk, its title or
-- '' and that folded. Returns the ids whose lease is no longer this one.
local function renew(first, at, lease_ms)
  local lost = {}
  for i = first, #ARGV, 5 do
    local id, token, done_bytes = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
    if holds_lease(id, token) then
      redis.call('ZADD', LEASED, 'XX', at + lease_ms, id)
      local title = ARGV[i + 3]
      local tries = (done_bytes > 0 or title ~= '') and tries_of(id)
      local has_news = tries and entitle(id, tries, title, ARGV[i + 4])
      if done_bytes > 0 then
        if not tries.chunks or done_bytes > (tries.bytes or 0) then
          -- A job that gets further from death to death does not kill: its machines die of something else.
          if done_bytes > (tries.bytes or 0) + PROGRESS_BYTES then
            forget_deaths(tries)
          end
          tries.chunks, tries.bytes = true, math.max(done_bytes, tries.bytes or 0)
          has_news = true
        end
      end
      if has_news then
        save_tries(id, tries)
      end
    else
      forgive(id, token)
      lost[#lost + 1] = id
    end
  end
  return lost
end
