-- expand: a leased container becomes a job for each page (and each container) that was never seen.
-- KEYS: the common ones, answer:<token>, closed:<namespace>:<bucket> of the container, a seen bucket for each job.
-- ARGV: id, token, member of the container, 1 if more follows, lease_ms, nonce, number of pages,
-- then id and member of each job, the pages first. Answers {added, known, {id, token, origin, attempt} or nothing},
-- as JSON, or false for a stale token.

local answer_key, closed_key, first_bucket = KEYS[OWN + 1], KEYS[OWN + 2], OWN + 3
local id, token, member, more = ARGV[1], ARGV[2], ARGV[3], ARGV[4] == '1'
local lease_ms, nonce, page_count = tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7])
local first_job = 8

local call = 'expand ' .. id
local given, is_ours = opened(answer_key, call, id, token)
if not is_ours then
  return given or false
end

local at = now()
local origin = redis.call('HGET', ORIGIN, id)
local known, pages, containers = 0, {}, {}
for i = 0, (#ARGV - first_job + 1) / 2 - 1 do
  local job, job_member = ARGV[first_job + 2 * i], ARGV[first_job + 2 * i + 1]
  if redis.call('SADD', KEYS[first_bucket + i], job_member) == 0 then
    known = known + 1
  else
    if origin then
      redis.call('HSET', ORIGIN, job, origin)
    end
    local new = i < page_count and pages or containers
    new[#new + 1] = job
  end
end

-- Pages go to the head, in their order: a video that was begun is finished before the next one. What a source
-- lists goes to the tail, like everything else that a user adds.
local first = nil
if not more and #pages > 0 then
  first = table.remove(pages, 1)
end
for i = #pages, 1, -1 do
  redis.call('LPUSH', READY, pages[i])
end
for _, job in ipairs(containers) do
  redis.call('RPUSH', READY, job)
end
local added = #pages + #containers + (first and 1 or 0)
if more then
  redis.call('ZADD', LEASED, 'XX', at + lease_ms, id)
  return cjson.encode({ added, known })
end

local tries = tries_of(id)
end_lease(id, tries)
if tries.again then
  redis.call('HDEL', TRIES, id)
  redis.call('RPUSH', READY, id)
else
  forget(id)
  redis.call('SADD', closed_key, member)
end
local answer = { added, known }
if first then
  answer[3] = grant(first, tries_of(first), tries.worker, tries.instance or '', lease_ms, nonce, at)
end
return remember(answer_key, call, cjson.encode(answer))
