-- watch: a source or a video is to be read again and again, or no more. KEYS: the common ones. ARGV: id, seconds or 0.
-- Answers how often it was read again before.

local before = ledger_of(ARGV[1]).watched
if redis.call('HEXISTS', LEDGER, ARGV[1]) == 1 or ARGV[2] ~= '0' then
  watch(ARGV[1], tonumber(ARGV[2]), now())
end
return before
