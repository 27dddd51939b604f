-- redrive: failed jobs get all their attempts back, now. KEYS: the common ones. ARGV: ids.
-- Answers how many of them were dead or delayed.

local moved = 0
for _, id in ipairs(ARGV) do
  local tries = tries_of(id)
  if leave_failed(id, tries) then
    begin_anew(id, tries)
    push_tail(id)
    moved = moved + 1
  end
end
return moved
