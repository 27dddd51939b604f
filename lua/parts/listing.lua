-- What expand and enlist share: how jobs that a container lists are added.

-- How what a source lists is queued: it knows the source; how that is read concerns other sources in it as well.
local function listed_origins(id, origin)
  if not is_source(id) then
    return origin, origin
  end
  local wanted = origin and cjson.decode(origin) or {}
  return cjson.encode({ category = wanted.category, source = id }), cjson.encode({
    category = wanted.category, source = id, wishes = wanted.wishes, quick = wanted.quick, refresh = wanted.refresh,
  })
end

-- Known ones are read again: a source always, a video where that is wished.
local function is_reopened(wanted, job_member, closed, paged, nested)
  local again = nested or wanted.refresh == 'all'
    or (wanted.refresh == 'paged' and redis.call('SISMEMBER', paged, job_member) == 1)
  return again and redis.call('SREM', closed, job_member) == 1
end

-- Add what the container `id` lists, what was never seen. From ARGV[first_job] on there are id and member of each job, the
-- pages first; from KEYS[first_bucket] on a seen bucket for each page, and for each container its seen, closed and paged
-- one. `mark_key` is where it is noted that this expansion has added them, so that it counts them as new when it is
-- repeated; nil where all of it is one step. Returns for each job whether it is new, and the pages and containers to be
-- queued.
local function enlist(id, origin, page_count, first_job, first_bucket, mark_key)
  local wanted = is_source(id) and origin and cjson.decode(origin) or {}
  local listed_origin, nested_origin = listed_origins(id, origin)
  local news, pages, containers = {}, {}, {}
  for i = 0, (#ARGV - first_job + 1) / 2 - 1 do
    local job, job_member = ARGV[first_job + 2 * i], ARGV[first_job + 2 * i + 1]
    local bucket = i < page_count and first_bucket + i or first_bucket + page_count + 3 * (i - page_count)
    local new = redis.call('SADD', KEYS[bucket], job_member) == 1
    if mark_key and new then
      redis.call('SADD', mark_key, job)
    end
    news[i + 1] = new or (mark_key ~= nil and redis.call('SISMEMBER', mark_key, job) == 1)
    if i >= page_count then
      local nested = is_source(job)
      if new or is_reopened(wanted, job_member, KEYS[bucket + 1], KEYS[bucket + 2], nested) then
        if nested then
          begin_source(job, nested_origin)
        end
        local its_origin = nested and nested_origin or listed_origin
        if its_origin then
          redis.call('HSET', ORIGIN, job, its_origin)
        end
        containers[#containers + 1] = job
      end
    elseif new then
      if origin then
        redis.call('HSET', ORIGIN, job, origin)
      end
      pages[#pages + 1] = job
    end
  end
  return news, pages, containers
end

-- Pages go to the head, in their order: a video that was begun is finished before the next one. What a source
-- lists goes to the tail, like everything else that a user adds.
local function queue_listed(pages, containers)
  local reversed = {}
  for i = #pages, 1, -1 do
    reversed[#reversed + 1] = pages[i]
  end
  push('LPUSH', reversed)
  push('RPUSH', containers)
end
