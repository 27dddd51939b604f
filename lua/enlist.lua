-- enlist: jobs that a container of any shard lists are added in their own. KEYS: the common ones, what this expansion has
-- added here, a seen bucket for each page, and for each container its seen, closed and paged one.
-- ARGV: id of the container, its origin or '', for how many ms it may be repeated, number of pages, then id and member of
-- each job, the pages first. Answers for each job 1 where it is new, also if it was added by a call before.
-- with listing

local mark_key, origin = KEYS[OWN + 1], ARGV[2] ~= '' and ARGV[2]
local news, pages, containers = enlist(ARGV[1], origin, tonumber(ARGV[4]), 5, OWN + 2, mark_key)
queue_listed(pages, containers)
local answer = {}
for i, new in ipairs(news) do
  answer[i] = new and 1 or 0
end
redis.call('PEXPIRE', mark_key, ARGV[3])
return answer
