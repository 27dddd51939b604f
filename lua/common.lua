-- What all scripts share: the names of the keys, the clock, and the steps that several transitions are made of.
-- Every script is this text followed by its own. All keys are declared and carry one hash tag; data comes in
-- ARGV only. Ids of the site (aid, cid, ep) are decimal strings here: a Lua number is a double.

local READY, KEPT, SUSPECT = KEYS[1], KEYS[2], KEYS[3] -- LIST, ZSET id -> reserved until, LIST
local LEASED, DELAYED, DEAD = KEYS[4], KEYS[5], KEYS[6] -- ZSET id -> deadline, not before, when (all in ms)
local TOKEN, TRIES, ORIGIN = KEYS[7], KEYS[8], KEYS[9] -- HASH id -> token; JSON; JSON
local FAILURES, SUCCESS, TOTALS = KEYS[10], KEYS[11], KEYS[12] -- ZSET of code \0 id; STREAM; HASH
local HOLDS, ALONE = KEYS[13], KEYS[14] -- HASH worker -> number of leases; worker -> suspect that it holds
local WORKERS, STATUS = KEYS[15], KEYS[16] -- ZSET worker -> last seen in ms; HASH worker -> JSON
local EPOCH, FENCE = KEYS[17], KEYS[18] -- STRING, made once; STRING, counts leases
local SWEPT, GRACE = KEYS[19], KEYS[20] -- STRING: last sweep; until then no lease runs out (both in ms)
local DEATHS, DRAINING = KEYS[21], KEYS[22] -- ZSET worker and instance -> when it died; worker -> until (all in ms)
local STARTED = KEYS[23] -- ZSET worker and instance -> when that process was first heard of
local LEDGER, WATCH = KEYS[24], KEYS[25] -- HASH source, or watched video -> JSON; ZSET id -> when it is to be read again (in ms)
local STALE, KINDS = KEYS[26], KEYS[27] -- HASH id -> entries in READY that do not count; state and code -> how many
local TITLES, TITLED = KEYS[28], KEYS[29] -- ZSET of folded title \0 id; LIST of those that are done, the oldest first
local FORGOTTEN = KEYS[30] -- ZSET cid -> when a user had it forgotten
local LEDGERS, WORDS = KEYS[31], KEYS[32] -- ZSET of the ids in LEDGER, to be read in order; HASH >text -> number, <number -> text
local OWN = 32 -- keys after this one are the script's own

local SWEEP_LIMIT = 100 -- so that a sweep's work is bounded; the next call goes on
local ANSWER_MS = 3600 * 1000
local WORKER_MS = 24 * 3600 * 1000
local STARTED_MS = 30 * WORKER_MS
local STARTED_LIMIT = 200000 -- processes that are known; of more, those that were heard of first are forgotten
local LOGIN_MS = 10 * 60 * 1000
local DELAY_MS_AT_MOST = 6 * 3600 * 1000 -- as in retry.py
local OUTAGE_MS = 5000 -- a queue that was not swept for so long was away, or its clock has jumped
local SUSPECT_DEATHS, POISON_DEATHS, POISON_DEATHS_AT_MOST = 2, 3, 8
local DIED_LIMIT = 32 -- names that are kept of the workers that died with one job, the last ones
local UNREST_MS = 60000 -- deaths of other workers from so long before a job's first one on speak for the job
local PROGRESS_BYTES = 1048576
local STALE_LIMIT = 1000 -- entries that do not count are left out so many at a time
local PUSHED_AT_ONCE = 1000 -- a call has room for some thousand arguments
local ERRORS_LIMIT, ERROR_BYTES = 8, 200 -- so many failures are kept with a job, and so much of each reason
local TITLES_LIMIT = 100000 -- so many of the pages that were done last are found by their titles
local FORGOTTEN_LIMIT = 100000
local WORDS_LIMIT, WORD_BYTES = 4000, 200 -- so many texts of each kind that records share, and how long they are
local CANCELLED = 'cancelled'
local FULL_PASS_SECONDS = 24 * 3600 -- a watched source is read to its end so often, in between only its news; a video is
-- asked for new pages so often at most

-- The only clock there is: that of the server.
local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function tries_of(id)
  local text = redis.call('HGET', TRIES, id)
  if text then
    return cjson.decode(text)
  end
  return { attempts = 0, deaths = 0 }
end

local function save_tries(id, tries)
  redis.call('HSET', TRIES, id, cjson.encode(tries))
end

-- A token is compared for equality: nothing else proves a lease.
local function holds_lease(id, token)
  return redis.call('HGET', TOKEN, id) == token
end

-- An answer is kept for the very call that it was given to: `call` names the verb and what it was about.
local function remember(key, call, answer)
  redis.call('SET', key, call .. '\n' .. answer, 'PX', ANSWER_MS)
  return answer
end

local function recall(key, call)
  local text = redis.call('GET', key)
  if text and string.sub(text, 1, #call + 1) == call .. '\n' then
    return string.sub(text, #call + 2)
  end
  return nil
end

-- Returns the answer that this very call was given before, or else whether the token is that of the lease.
local function opened(key, call, id, token)
  local given = recall(key, call)
  return given, given == nil and holds_lease(id, token)
end

local function end_lease(id, tries)
  redis.call('ZREM', LEASED, id)
  redis.call('HDEL', TOKEN, id)
  local worker = tries.worker or ''
  if redis.call('HINCRBY', HOLDS, worker, -1) <= 0 then
    redis.call('HDEL', HOLDS, worker)
  end
  if redis.call('HGET', ALONE, worker) == id then
    redis.call('HDEL', ALONE, worker)
  end
end

-- A job cannot be taken out of the middle of a list without a look at all of it. So an entry stays there, and counts no
-- more: of one that was moved to the head the entry further on, of one that was cancelled the only one. STALE has how
-- many such entries a job has: as a negative number where no entry of it counts, and nothing where there are none.
local function stale_of(id)
  return tonumber(redis.call('HGET', STALE, id) or 0)
end

-- Of several at the head the last one comes first.
local function push(command, ids)
  for first = 1, #ids, PUSHED_AT_ONCE do
    local last = math.min(first + PUSHED_AT_ONCE - 1, #ids)
    redis.call(command, READY, unpack(ids, first, last))
    for i, stale in ipairs(redis.call('HMGET', STALE, unpack(ids, first, last))) do
      if stale and tonumber(stale) < 0 then
        redis.call('HSET', STALE, ids[first + i - 1], -stale)
      end
    end
  end
end

local function push_head(id)
  push('LPUSH', { id })
end

local function push_tail(id)
  push('RPUSH', { id })
end

-- The first of a job's entries was taken out of the list, and it was the one that counts; `stale` as it was before.
local function note_popped(id, stale)
  if stale > 0 then
    redis.call('HSET', STALE, id, -stale)
  end
end

-- An entry that does not count was taken out of the list.
local function note_dropped(id)
  if redis.call('HINCRBY', STALE, id, 1) == 0 then
    redis.call('HDEL', STALE, id)
  end
  redis.call('HINCRBY', TOTALS, 'stale', -1)
end

local stale_budget = STALE_LIMIT

-- Returns the next job that waits; none as well where too many entries before it do not count: the next call goes on.
local function pop_ready()
  while stale_budget > 0 do
    local id = redis.call('LPOP', READY)
    if not id then
      return nil
    end
    local stale = stale_of(id)
    if stale >= 0 then
      note_popped(id, stale)
      return id
    end
    note_dropped(id)
    stale_budget = stale_budget - 1
  end
  return nil
end

-- Of a job that waits in READY, wherever: its entry counts no more.
local function leave_ready(id)
  redis.call('HSET', STALE, id, -(stale_of(id) + 1))
  redis.call('HINCRBY', TOTALS, 'stale', 1)
end

-- Of a job that waits in READY: it comes next, and the entry further on counts no more.
local function come_first(id)
  if redis.call('LINDEX', READY, 0) ~= id then
    redis.call('HINCRBY', STALE, id, 1)
    redis.call('LPUSH', READY, id)
    redis.call('HINCRBY', TOTALS, 'stale', 1)
  end
end

-- Returns whether a job stands among the next ones; it is taken out of the list then.
local function pull(id, reach)
  local stale = stale_of(id)
  if stale < 0 or not redis.call('LPOS', READY, id, 'MAXLEN', reach) then
    return false
  end
  redis.call('LREM', READY, 1, id)
  note_popped(id, stale)
  return true
end

-- Started work goes to the head, so that it is finished before new work begins.
local function put_back(id, tries)
  if tries.deaths >= SUSPECT_DEATHS then
    redis.call('RPUSH', SUSPECT, id)
  else
    push_head(id)
  end
end

-- The same, but a job with chunks on its last worker's disk waits a while for that worker.
local function put_back_kept(id, tries, at, affinity_ms)
  if tries.chunks and tries.deaths < SUSPECT_DEATHS and affinity_ms > 0 then
    redis.call('ZADD', KEPT, at + affinity_ms, id)
  else
    put_back(id, tries)
  end
end

-- ---------------------------------------------------------------------------------- what is known of a job

-- A title is found by its beginning, folded as store/data.py does it.
local function entitle(id, tries, title, folded)
  if title == '' or tries.title == title then
    return false
  end
  if tries.folded then
    redis.call('ZREM', TITLES, tries.folded .. '\0' .. id)
  end
  tries.title, tries.folded = title, folded
  redis.call('ZADD', TITLES, 0, folded .. '\0' .. id)
  return true
end

local function drop(id, tries)
  redis.call('HDEL', TRIES, id)
  redis.call('HDEL', ORIGIN, id)
  if tries.folded then
    redis.call('ZREM', TITLES, tries.folded .. '\0' .. id)
  end
end

-- All attempts are given back; what happened so far is still told.
local function begin_anew(id, tries)
  if tries.title or tries.errors then
    save_tries(id, { attempts = 0, deaths = 0, title = tries.title, folded = tries.folded, errors = tries.errors })
  else
    redis.call('HDEL', TRIES, id)
  end
end

-- At most so many bytes, and no half of a character.
local function shortened(text, bytes)
  if #text <= bytes then
    return text
  end
  local byte = string.byte(text, bytes + 1)
  while bytes > 0 and byte >= 128 and byte < 192 do
    bytes = bytes - 1
    byte = string.byte(text, bytes + 1)
  end
  return string.sub(text, 1, bytes)
end

-- The last failures of a job, the oldest first, each as {when, worker, attempt, code, reason}.
local function note_error(tries, at, code, reason)
  local errors = tries.errors or {}
  errors[#errors + 1] = { at, tries.worker or '', tries.attempts + 1, code, shortened(reason, ERROR_BYTES) }
  if #errors > ERRORS_LIMIT then
    table.remove(errors, 1)
  end
  tries.errors = errors
end

local function forget_error(tries)
  if tries.errors and #tries.errors > 1 then
    table.remove(tries.errors)
  else
    tries.errors = nil -- an empty list would be an object in JSON
  end
end

-- ---------------------------------------------------------------------------------- those that failed

-- FAILURES has each delayed and each dead job under the code that it failed with; KINDS counts them.
local function join_failed(id, tries, state)
  local code = tries.code or ''
  if redis.call('ZADD', FAILURES, 0, code .. '\0' .. id) == 1 then
    redis.call('HINCRBY', KINDS, state .. ':' .. code, 1)
  end
end

-- Takes a job out of its place, returns whether it was dead or delayed.
local function leave_failed(id, tries)
  local state = (redis.call('ZREM', DEAD, id) == 1 and 'dead') or (redis.call('ZREM', DELAYED, id) == 1 and 'delayed')
  if not state then
    return false
  end
  local code = tries.code or ''
  local kind = state .. ':' .. code
  if redis.call('ZREM', FAILURES, code .. '\0' .. id) == 1 and redis.call('HINCRBY', KINDS, kind, -1) <= 0 then
    redis.call('HDEL', KINDS, kind)
  end
  return true
end

local function bury(id, tries, at, code, reason)
  if tries.recorded then
    drop(id, tries)
    return
  end
  tries.code, tries.reason, tries.time = code, reason, at
  save_tries(id, tries)
  redis.call('ZADD', DEAD, at, id)
  join_failed(id, tries, 'dead')
end

-- Write down that a worker died with a job. One that was alone with a suspect says nothing of the others.
local function count_death(id, tries, at)
  local worker = tries.worker or ''
  if redis.call('HGET', ALONE, worker) ~= id then
    local name = worker .. ' ' .. (tries.instance or '')
    redis.call('ZADD', DEATHS, at, name)
    tries.died = tries.died or {}
    tries.died[#tries.died + 1] = name
    if #tries.died > DIED_LIMIT then
      table.remove(tries.died, 1)
    end
  end
  tries.deaths = tries.deaths + 1
  tries.first_death = tries.first_death or at
end

-- Where machines die of something else as well, three deaths prove nothing: then it takes more of them.
local function is_poison(tries)
  if tries.deaths < POISON_DEATHS or tries.deaths >= POISON_DEATHS_AT_MOST then
    return tries.deaths >= POISON_DEATHS_AT_MOST
  end
  local since = tries.first_death - UNREST_MS
  local others = redis.call('ZCOUNT', DEATHS, since, '+inf')
  local own = {}
  for _, name in ipairs(tries.died or {}) do
    local died_at = redis.call('ZSCORE', DEATHS, name)
    if not own[name] and died_at and tonumber(died_at) >= since then
      own[name] = true
      others = others - 1
    end
  end
  return others <= 0
end

-- How many there were is forgotten. `died` stays: these deaths are the job's own, and must not speak for it later as
-- those of other jobs do.
local function forget_deaths(tries)
  tries.deaths, tries.first_death = 0, nil
end

-- The worker that held the lease is taken for dead.
local function expire(id, at, affinity_ms)
  local tries = tries_of(id)
  tries.lost = redis.call('HGET', TOKEN, id)
  count_death(id, tries, at)
  end_lease(id, tries)
  if is_poison(tries) then
    local reason = 'Its workers died with it again and again, the last one holding nothing else.'
    note_error(tries, at, 'poison', reason)
    bury(id, tries, at, 'poison', reason)
  else
    save_tries(id, tries)
    put_back_kept(id, tries, at, affinity_ms)
  end
end

-- Fewer deaths than were counted speak against a job: it may be no suspect any more, or not dead.
local function reconsider(id, tries)
  local was_dead = tries.code == 'poison' and leave_failed(id, tries)
  if was_dead then
    tries.code, tries.reason = nil, nil
    forget_error(tries)
  end
  save_tries(id, tries)
  if was_dead or (tries.deaths < SUSPECT_DEATHS and redis.call('LREM', SUSPECT, 1, id) == 1) then
    put_back(id, tries)
  end
end

-- A worker that was taken for dead asks for its lost lease: it was cut off, no job has killed it.
local function forgive(id, token)
  local tries = tries_of(id)
  if tries.lost ~= token then
    return
  end
  tries.lost, tries.deaths = nil, tries.deaths - 1
  if tries.deaths <= 0 then
    forget_deaths(tries)
  end
  reconsider(id, tries)
end

-- While the queue was away nobody could renew a lease: each of them gets a whole term to be renewed in.
local function leases_may_run_out(at, lease_ms)
  local times, latest = redis.call('MGET', SWEPT, GRACE), at + lease_ms
  local away_ms, grace = at - tonumber(times[1] or at - 1000), tonumber(times[2] or 0)
  if away_ms >= 1000 or away_ms < 0 then
    redis.call('SET', SWEPT, string.format('%.0f', at))
  end
  if away_ms > OUTAGE_MS then
    redis.call('SET', GRACE, string.format('%.0f', latest))
    return false
  end
  return at >= grace or grace > latest
end

local function sweep(at, lease_ms, affinity_ms)
  local moved = 0
  if leases_may_run_out(at, lease_ms) then
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', LEASED, '-inf', at, 'LIMIT', 0, SWEEP_LIMIT)) do
      expire(id, at, affinity_ms)
      moved = moved + 1
    end
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', DELAYED, '-inf', at, 'LIMIT', 0, SWEEP_LIMIT)) do
    local tries = tries_of(id)
    leave_failed(id, tries)
    put_back_kept(id, tries, at, affinity_ms)
    moved = moved + 1
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEPT, '-inf', at, 'LIMIT', 0, SWEEP_LIMIT)) do
    redis.call('ZREM', KEPT, id)
    put_back(id, tries_of(id))
    moved = moved + 1
  end
  return moved
end

-- Only the last ones of those that are done are found by their titles: what comes in pushes the oldest out.
local function entitle_done(id, folded)
  local member = folded .. '\0' .. id
  redis.call('ZADD', TITLES, 0, member)
  redis.call('RPUSH', TITLED, member)
  if redis.call('LLEN', TITLED) > TITLES_LIMIT then
    local oldest = redis.call('LPOP', TITLED)
    if redis.call('HEXISTS', TRIES, string.match(oldest, '%z([^%z]*)$')) == 0 then
      redis.call('ZREM', TITLES, oldest)
    end
  end
end

-- Where a page's record is in SUCCESS. Mostly it is number 0 of its millisecond: an integer then, and short.
local function note_record(record_key, cid, entry)
  redis.call('HSET', record_key, cid, string.match(entry, '^(%d+)%-0$') or entry)
end

-- What many records say alike is kept once, and they have its number; what cannot be kept so begins with "=". A path
-- that no other page can share comes so already.
local function word(kind, text)
  local is_path = kind == 'path' or kind == 'stored'
  if text == '' or (is_path and string.sub(text, 1, 1) == '=') then
    return text
  end
  local number = #text <= WORD_BYTES and redis.call('HGET', WORDS, '>' .. text)
  if number then
    return number
  end
  if #text > WORD_BYTES or tonumber(redis.call('HGET', WORDS, '#' .. kind) or 0) >= WORDS_LIMIT then
    return '=' .. text
  end
  redis.call('HINCRBY', WORDS, '#' .. kind, 1)
  number = redis.call('HINCRBY', WORDS, '#', 1)
  redis.call('HSET', WORDS, '>' .. text, number, '<' .. number, text)
  return number
end

-- Record a page as done, once for ever; returns whether it was not. `path` and `stored` are patterns, as
-- store/records.py makes them. `entry` is the id that the record had in another queue, and `at` when that was, or nil:
-- it has that id here too, unless there are later ones already.
local function record(done_key, record_key, cid, id, page, entry, at)
  if redis.call('SADD', done_key, cid) == 0 then
    return false
  end
  redis.call('HINCRBY', TOTALS, 'done', 1)
  -- Always the same fields in the same order: a stream then stores their names once.
  local fields = { 'url', id, 'title', page.title, 'path', word('path', page.path),
    'bytes', page.bytes, 'tenths', string.format('%.0f', tonumber(page.seconds) * 10),
    'worker', word('worker', page.worker), 'streams', word('streams', page.streams), 'errors', page.errors,
    'category', word('category', page.category), 'source', word('source', page.source),
    'stored', word('stored', page.stored or '') }
  local given = entry and redis.pcall('XADD', SUCCESS, entry, unpack(fields))
  if type(given) ~= 'string' then
    if at then
      fields[#fields + 1], fields[#fields + 2] = 'at', at
    end
    given = redis.call('XADD', SUCCESS, '*', unpack(fields))
  end
  note_record(record_key, cid, given)
  redis.call('ZREM', FORGOTTEN, cid)
  if page.title ~= '' then
    entitle_done(id, page.folded)
  end
  return true
end

-- A job whose page was recorded apart from its lease is wanted no more. In a list it cannot be found quickly: it is
-- marked, and left out when its turn comes. One that is leased ends with its lease.
local function drop_recorded(id)
  local tries = tries_of(id)
  if leave_failed(id, tries) or redis.call('ZREM', KEPT, id) == 1 then
    drop(id, tries)
  else
    tries.recorded = true
    save_tries(id, tries)
  end
end

-- Where a job is; nil if it was never added. `member` is its own in a bucket of what was seen, and of what was done or
-- closed. What was added and is nowhere else waits in one of the two lists, which nobody can search.
local function place_of(id, tries, seen_key, ended_key, member)
  if redis.call('HEXISTS', TOKEN, id) == 1 then
    return 'leased'
  end
  for place, key in pairs({ kept = KEPT, delayed = DELAYED, dead = DEAD }) do
    if redis.call('ZSCORE', key, id) then
      return place
    end
  end
  if redis.call('SISMEMBER', ended_key, member) == 1 then
    return 'done'
  end
  if redis.call('SISMEMBER', seen_key, member) == 0 then
    return nil
  end
  return tries.deaths >= SUSPECT_DEATHS and 'suspect' or 'ready'
end

-- What is known of a source: how far it was read, and what was found. `page` and `cursor` are where a pass through its
-- listing stands; a pass is quick where it ends at the first page with nothing new.
local function ledger_of(id)
  local text = redis.call('HGET', LEDGER, id)
  if text then
    return cjson.decode(text)
  end
  return {
    title = '', pages_read = 0, listed = 0, queued = 0, known = 0, unavailable = {}, complete = false, watched = 0,
    page = 0, taken = 0, cursor = '',
  }
end

local function save_ledger(id, ledger)
  if redis.call('HSET', LEDGER, id, cjson.encode(ledger)) == 1 then
    redis.call('ZADD', LEDGERS, 0, id)
  end
end

local function drop_ledger(id)
  redis.call('HDEL', LEDGER, id)
  redis.call('ZREM', LEDGERS, id)
end

-- Every other job is a video, an episode, a lesson, or a page of one.
local function is_source(id)
  local kind = string.sub(id, 1, 2)
  return kind ~= 'BV' and kind ~= 'ep' and string.sub(id, 1, 9) ~= 'cheese:ep'
end

-- A source is to be read from its beginning, as `origin` says; what was found the last time stays until then.
local function begin_source(id, origin)
  local ledger = ledger_of(id)
  local wanted = origin ~= '' and cjson.decode(origin) or {}
  ledger.category, ledger.wishes = wanted.category, wanted.wishes
  ledger.page, ledger.taken, ledger.cursor, ledger.last = 0, 0, '', nil
  save_ledger(id, ledger)
end

-- 0 seconds: it is watched no more. What is watched already is not put off by being named again. A video is asked for
-- new pages once a day at most, and has a ledger as long as it is watched; `category` is where its new pages go, nil for
-- where they went before.
local function watch(id, seconds, at, category)
  local ledger = ledger_of(id)
  if seconds > 0 and not is_source(id) then
    seconds = math.max(seconds, FULL_PASS_SECONDS)
  end
  if seconds == 0 and not is_source(id) then
    drop_ledger(id)
  elseif ledger.watched ~= seconds or (category and ledger.category ~= category) then
    ledger.watched, ledger.category = seconds, category or ledger.category
    save_ledger(id, ledger)
  end
  if seconds == 0 then
    redis.call('ZREM', WATCH, id)
    return
  end
  local due, first = redis.call('ZSCORE', WATCH, id), at + seconds * 1000
  if not due or tonumber(due) > first then
    redis.call('ZADD', WATCH, first, id)
  end
end

-- Returns how a watched source is read this time: its news, or once a day all of it, and then known videos that have
-- several pages are asked for more of them. Of a video it is the category only.
local function revisit_origin(id, at)
  local ledger = ledger_of(id)
  if not is_source(id) then
    return ledger.category and cjson.encode({ category = ledger.category }) or ''
  end
  local origin = { category = ledger.category, wishes = ledger.wishes }
  if ledger.full_pass and math.abs(at / 1000 - ledger.full_pass) < FULL_PASS_SECONDS then
    origin.quick = true
  else
    origin.refresh = 'paged'
  end
  return cjson.encode(origin)
end

local known_epoch

-- What tokens begin with; `new` is for a queue that has none yet.
local function epoch(new)
  known_epoch = known_epoch or redis.call('GET', EPOCH)
  if not known_epoch then
    redis.call('SET', EPOCH, new)
    known_epoch = new
  end
  return known_epoch
end

-- Returns {id, token, origin, attempt, ledger} of a fresh lease; the ledger is that of a source, else empty.
local function grant(id, tries, worker, instance, lease_ms, nonce, at)
  if tries.worker ~= worker then
    tries.chunks = nil -- what the last worker has on its disk is out of this one's reach
  end
  tries.worker, tries.instance, tries.again = worker, instance, nil
  save_tries(id, tries)
  local token = epoch() .. '.' .. string.format('%.0f', redis.call('INCR', FENCE)) .. '.' .. nonce
  redis.call('HSET', TOKEN, id, token)
  redis.call('ZADD', LEASED, at + lease_ms, id)
  redis.call('HINCRBY', HOLDS, worker, 1)
  local ledger = is_source(id) and (redis.call('HGET', LEDGER, id) or '{}') or ''
  return { id, token, redis.call('HGET', ORIGIN, id) or '', tries.attempts + 1, ledger }
end

-- Returns what a worker is to do and has not yet done, nil for nothing. What is older than a day is not meant any more;
-- nor is a login for which nobody waits now: whoever came by could scan its code.
local function order_of(orders_key, worker, at)
  local text = redis.call('HGET', orders_key, worker)
  local order = text and cjson.decode(text)
  if not order or math.abs(at - order.at) > WORKER_MS then
    return nil
  end
  if order.login and math.abs(at - order.login_at) > LOGIN_MS then
    order.login, order.login_at = nil, nil
  end
  if not order.login and not next(order.working) then
    return nil
  end
  return order
end
