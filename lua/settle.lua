-- settle: what a lease request is answered that was given jobs of several shards; it is the same whoever asks for it, and
-- however often. KEYS: the common ones, settled:<request>. ARGV: worker, the leases as JSON, or begun before any is
-- given elsewhere. Answers what stands: begun, or leases as JSON; to begun the word new where it was not there.

local key, call, wished = KEYS[OWN + 1], 'lease ' .. ARGV[1], ARGV[2]

local standing = recall(key, call)
if standing and (standing ~= 'begun' or wished == 'begun') then
  return standing
end
remember(key, call, wished)
return wished == 'begun' and 'new' or wished
