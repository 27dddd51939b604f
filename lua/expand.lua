-- expand: a leased container becomes a job for each page (and each container) that was never seen.
-- KEYS: the common ones, answer:<token>, closed:<namespace>:<bucket> of the container, paged:<namespace>:<bucket> of a
-- video or listed:<id> of a source, ended, a seen bucket for each page, and for each container its seen, closed and paged
-- one.
-- ARGV: id, token, member of the container, 1 if more follows, lease_ms, nonce, number of pages, what the ledger of a
-- source (of a watched video its title, and how many pages it has) is told as JSON, then id and member of each job, the
-- pages first. Where some of the jobs belong to other shards, all of them were queued by enlist.lua, none is named here,
-- and `elsewhere` of that JSON has what came of it: added, known, pages, listed, first.
-- Answers {added, known, {id, token, origin, attempt, ledger} or nothing}, as JSON, or false for a stale token; of a
-- source that is ended here, whatever was to follow, {added, known, true}; {added, known, {id, worker, instance}} where the
-- first new page is to be taken in another step.
-- with listing

local answer_key, closed_key, own_key = KEYS[OWN + 1], KEYS[OWN + 2], KEYS[OWN + 3]
local id, token, member, more = ARGV[1], ARGV[2], ARGV[3], ARGV[4] == '1'
local lease_ms, nonce, page_count = tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7])
local ended_key, first_bucket, first_job = KEYS[OWN + 4], OWN + 5, 9
local REASONS_LIMIT, OTHER_REASONS = 50, '…' -- so many texts for why something cannot be had, and what stands for more
local ENDED_LIMIT = 100 -- sources that were read to their end, as many as a message can name

local call = 'expand ' .. id
local given, is_ours = opened(answer_key, call, id, token)
if not is_ours then
  return given or false
end

local at = now()
local origin = redis.call('HGET', ORIGIN, id)
local added, known, pages_told = 0, 0, page_count
local elsewhere = string.find(ARGV[8], '"elsewhere"', 1, true) and cjson.decode(ARGV[8]).elsewhere

-- ---------------------------------------------------------------------------------- the ledger of a source

local ledger = is_source(id) and ledger_of(id)
local wanted = ledger and origin and cjson.decode(origin) or {}
local news = ledger and cjson.decode(ARGV[8])

-- The counts are those of one pass through the whole listing; quick ones are added to them.
local function begin_pass()
  save_ledger(id, ledger) -- a full memory refuses the first write only, and DEL never
  ledger.page, ledger.taken, ledger.fresh, ledger.before = 0, 0, 0, ledger.announced
  if not wanted.quick then
    ledger.pages_read, ledger.listed, ledger.queued, ledger.known, ledger.unavailable = 0, 0, 0, 0, {}
    ledger.started, ledger.finished, ledger.ended, ledger.complete = math.floor(at / 1000), nil, nil, false
    ledger.announced, ledger.pages_expected = nil, nil
    redis.call('DEL', own_key)
  end
end

-- A listing that moves while it is read shows some twice and others not at all: each is counted once.
local function count_listed(job)
  if not wanted.quick then
    ledger.listed = ledger.listed + redis.call('SADD', own_key, job)
  end
end

local function is_all_there()
  local unavailable = 0
  for _, count in pairs(ledger.unavailable) do
    unavailable = unavailable + count
  end
  return ledger.ended == 'end' and (not ledger.announced or ledger.announced == ledger.listed + unavailable)
end

-- However many reasons the pages of a listing name, a ledger has room for some.
local function note_reason(reason, count)
  if not ledger.unavailable[reason] then
    local reasons = 0
    for _ in pairs(ledger.unavailable) do
      reasons = reasons + 1
    end
    reason = reasons >= REASONS_LIMIT and OTHER_REASONS or reason
  end
  ledger.unavailable[reason] = (ledger.unavailable[reason] or 0) + count
end

-- One page of the listing was read; `added` of what it names are new.
local function note_page(added)
  for _, job in ipairs(news.skipped or {}) do
    count_listed(job)
  end
  ledger.page, ledger.taken, ledger.cursor = news.page, news.taken or 0, news.cursor or ''
  ledger.title = news.title or ledger.title
  ledger.announced = news.announced or ledger.announced
  ledger.pages_expected = news.pages or ledger.pages_expected
  ledger.fresh = (ledger.fresh or 0) + added
  ledger.queued = ledger.queued + added
  if wanted.quick then
    ledger.listed = ledger.listed + added
  else
    ledger.known, ledger.pages_read = ledger.known + known, ledger.page
    for reason, count in pairs(news.unavailable or {}) do
      note_reason(reason, count)
    end
    redis.call('PEXPIRE', own_key, 7 * WORKER_MS)
  end
end

-- Nothing on a page is new, and no more was announced than the last time and since: further on nothing is new either.
-- An answer that lists nothing says nothing of that: it may only name the source, or have lost what it lists.
local function has_no_more_news(added)
  return wanted.quick and added == 0 and (known > 0 or #(news.skipped or {}) > 0)
    and (not ledger.announced or ledger.announced <= (ledger.before or 0) + ledger.fresh)
end

-- That a known list was read again and has nothing new is no news.
local function tell_end(is_first)
  if is_first or ledger.queued > 0 then
    local unavailable = 0
    for _, count in pairs(ledger.unavailable) do
      unavailable = unavailable + count
    end
    redis.call('XADD', ended_key, 'MAXLEN', ENDED_LIMIT, '*', 'source', id, 'title', ledger.title, 'complete',
      ledger.complete and 1 or 0, 'listed', ledger.listed, 'queued', ledger.queued, 'unavailable', unavailable)
  end
end

local function end_pass()
  local seconds = math.floor(at / 1000)
  local is_first = not ledger.full_pass
  ledger.checked = seconds
  if not wanted.quick then
    ledger.ended, ledger.finished, ledger.full_pass = news.ended or 'end', seconds, seconds
    redis.call('DEL', own_key)
  end
  ledger.complete = is_all_there()
  if not wanted.quick then
    tell_end(is_first)
  end
  ledger.page, ledger.taken, ledger.cursor, ledger.last = 0, 0, '', nil
  ledger.before, ledger.fresh = nil, nil
  if redis.call('ZSCORE', WATCH, id) then
    redis.call('ZADD', WATCH, at + ledger.watched * 1000, id)
  end
end

if ledger then
  local last = ledger.last
  if last and last.token == token and last.page == news.page then
    return cjson.encode({ last.added, last.known }) -- this page is counted: the answer was lost
  end
  news.page = news.page > 0 and news.page or ledger.page + 1
  if news.page == 1 then
    begin_pass()
  end
end

-- ---------------------------------------------------------------------------------- what was listed

local news_of, pages, containers = enlist(id, origin, page_count, first_job, first_bucket)
for i, new in ipairs(news_of) do
  if new then
    added = added + 1
  else
    known = known + 1
  end
  if ledger and i > page_count then
    count_listed(ARGV[first_job + 2 * (i - 1)])
  end
end
if elsewhere then
  added, known, pages_told = elsewhere.added, elsewhere.known, elsewhere.pages
  for _, job in ipairs(ledger and elsewhere.listed or {}) do
    count_listed(job)
  end
end

local first = nil
if not more and #pages > 0 then
  first = table.remove(pages, 1)
end
queue_listed(pages, containers)
if pages_told > 1 then
  redis.call('SADD', own_key, member)
end

-- ---------------------------------------------------------------------------------- whether it goes on

-- What is told of a watched video: nothing is read in between, so all of its pages are known when the last ones came.
local function note_visit(text)
  local video, told, seconds = cjson.decode(text), cjson.decode(ARGV[8]), math.floor(at / 1000)
  video.queued = video.queued + added
  if not more then
    video.title = told.title or video.title
    video.announced = told.announced or pages_told
    video.listed, video.known = video.announced, known
    video.complete, video.ended, video.checked, video.full_pass = true, 'end', seconds, seconds
  end
  save_ledger(id, video)
end

local watched_video = not ledger and redis.call('HGET', LEDGER, id)
if watched_video then
  note_visit(watched_video)
end

local ends_early = false
if ledger then
  note_page(added)
  ends_early = more and has_no_more_news(added)
  if more and not ends_early then
    ledger.last = { token = token, page = news.page, added = added, known = known }
  else
    end_pass()
  end
  save_ledger(id, ledger)
end
local tries = tries_of(id)
if more and not ends_early then
  redis.call('ZADD', LEASED, 'XX', at + lease_ms, id)
  if ledger and (tries.attempts > 0 or tries.deaths > 0) then
    tries.attempts = 0 -- it has come further than those who failed with it
    forget_deaths(tries)
    save_tries(id, tries)
  end
  if tries.expansion then
    tries.expansion = nil -- what it has added is counted
    save_tries(id, tries)
  end
  return cjson.encode({ added, known })
end

end_lease(id, tries)
if tries.again then
  begin_anew(id, tries)
  push_tail(id)
else
  drop(id, tries)
  redis.call('SADD', closed_key, member)
end
local answer = { added, known }
if first then
  answer[3] = grant(first, tries_of(first), tries.worker, tries.instance or '', lease_ms, nonce, at)
elseif elsewhere and elsewhere.first then
  answer[3] = { elsewhere.first, tries.worker, tries.instance or '' }
elseif ledger then
  answer[3] = true
end
return remember(answer_key, call, cjson.encode(answer))
