-- archive: records that were written into a file leave Redis. KEYS: the common ones, archives, then record:<bucket> of
-- each. ARGV: the place of that file, then entry and cid of each. Answers how many were still there: what is told twice
-- is counted once, and one that was forgotten meanwhile is not counted.

local place, archived = ARGV[1], 0
for i = 0, (#ARGV - 1) / 2 - 1 do
  local entry, cid, record_key = ARGV[2 + 2 * i], ARGV[3 + 2 * i], KEYS[OWN + 2 + i]
  if redis.call('XDEL', SUCCESS, entry) == 1 then
    archived = archived + 1
    local noted = redis.call('HGET', record_key, cid)
    if noted and (noted == entry or noted .. '-0' == entry) then
      redis.call('HDEL', record_key, cid)
    end
  end
end
if archived > 0 then
  redis.call('HINCRBY', KEYS[OWN + 1], place, archived)
end
return archived
