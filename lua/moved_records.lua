-- moved_records: records of finished pages come into their shard. KEYS: the common ones, the stream, resharded, then
-- record:<bucket> of each. ARGV: up to where those have come that belong here, then of each its entry, its cid, how many
-- names and values it has, and these.

local at = 2
for i = OWN + 3, #KEYS do
  local entry, cid, count = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  local fields = {}
  for j = 1, count do
    fields[j] = ARGV[at + 2 + j]
  end
  redis.call('XADD', KEYS[OWN + 1], entry, unpack(fields))
  note_record(KEYS[i], cid, entry)
  at = at + 3 + count
end
redis.call('HSET', KEYS[OWN + 2], 'success', ARGV[1])
return 1
