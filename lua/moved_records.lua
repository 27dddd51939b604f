-- moved_records: records of finished pages come into their shard. KEYS: the common ones, the stream, resharded, then
-- record:<bucket> of each. ARGV: up to where those have come that belong here, then of each its entry, its cid, how many
-- names and values it has, and these; in a packed record "<" and a text stand for the number that this word gets here.

local WORD_FIELDS = { path = 1, worker = 1, streams = 1, category = 1, source = 1, stored = 1 }
local at = 2
for i = OWN + 3, #KEYS do
  local entry, cid, count = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  local fields = {}
  local is_packed = false
  for j = 1, count do
    fields[j] = ARGV[at + 2 + j]
    is_packed = is_packed or (j % 2 == 1 and fields[j] == 'tenths')
  end
  for j = 2, is_packed and count or 0, 2 do
    if WORD_FIELDS[fields[j - 1]] and string.sub(fields[j], 1, 1) == '<' then
      fields[j] = word(fields[j - 1], string.sub(fields[j], 2))
    end
  end
  redis.call('XADD', KEYS[OWN + 1], entry, unpack(fields))
  note_record(KEYS[i], cid, entry)
  at = at + 3 + count
end
redis.call('HSET', KEYS[OWN + 2], 'success', ARGV[1])
return 1
