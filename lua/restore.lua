-- restore: what an export says comes into the queue. What is known stays as it is, save that a page which is done is
-- done. KEYS: the common ones, then those of each item. ARGV: the kind of the items, then the fields of each.
-- `job`: KEYS seen, done or closed. ARGV id, member, state, when in ms, tries and origin as JSON or ''.
-- `closed`: KEYS seen, closed, paged. ARGV member, 1 if it has several pages.
-- `record`: KEYS seen, done, record. ARGV id, cid, entry, when in ms, title, title folded, path (its pattern), bytes,
-- seconds, streams, worker, errors, category, source, where it is stored (a pattern).
-- `adopted`: the same of a file that a user wants to be known, with '' for the entry. `done`: KEYS seen, done. ARGV cid. `forgotten`: ARGV cid, when in ms. `totals`: ARGV name, number.
-- `ledger`, one only: KEYS listed. ARGV id, ledger as JSON, when it is to be read in ms or 0, number of listed ids, these.
-- Answers {added, known}.

local at = now()

local function job(key, arg)
  local id, member, state, when = ARGV[arg], ARGV[arg + 1], ARGV[arg + 2], ARGV[arg + 3]
  if redis.call('SADD', KEYS[key], member) == 0 then
    return false
  end
  local tries = ARGV[arg + 4] ~= '' and cjson.decode(ARGV[arg + 4]) or nil
  if tries then
    tries.lost, tries.recorded, tries.chunks = nil, nil, nil -- of leases and disks that are not here
    save_tries(id, tries)
    if tries.folded then
      redis.call('ZADD', TITLES, 0, tries.folded .. '\0' .. id)
    end
  end
  if ARGV[arg + 5] ~= '' then
    redis.call('HSET', ORIGIN, id, ARGV[arg + 5])
  end
  tries = tries or tries_of(id)
  if state == 'dead' then
    redis.call('ZADD', DEAD, when, id)
    join_failed(id, tries, state)
  elseif state == 'delayed' then
    redis.call('ZADD', DELAYED, when, id)
    join_failed(id, tries, state)
  elseif tries.deaths >= SUSPECT_DEATHS then
    redis.call('RPUSH', SUSPECT, id)
  else
    push_head(id) -- the last one comes first
  end
  return true
end

local function closed(key, arg)
  if redis.call('SADD', KEYS[key], ARGV[arg]) == 0 then
    return false
  end
  redis.call('SADD', KEYS[key + 1], ARGV[arg])
  if ARGV[arg + 1] == '1' then
    redis.call('SADD', KEYS[key + 2], ARGV[arg])
  end
  return true
end

local function recorded(key, arg)
  local id, cid, entry = ARGV[arg], ARGV[arg + 1], ARGV[arg + 2] ~= '' and ARGV[arg + 2] or nil
  if ARGV[1] == 'record' and redis.call('ZSCORE', FORGOTTEN, cid) then
    return false -- a user has had it forgotten since
  end
  local is_new = record(KEYS[key + 1], KEYS[key + 2], cid, id, {
    title = ARGV[arg + 4], folded = ARGV[arg + 5], path = ARGV[arg + 6], bytes = ARGV[arg + 7],
    seconds = ARGV[arg + 8], streams = ARGV[arg + 9], worker = ARGV[arg + 10], errors = ARGV[arg + 11],
    category = ARGV[arg + 12], source = ARGV[arg + 13], stored = ARGV[arg + 14],
  }, entry, ARGV[arg + 3])
  if is_new and redis.call('SADD', KEYS[key], cid) == 0 then
    drop_recorded(id)
  end
  return is_new
end

local function done(key, arg)
  if redis.call('SADD', KEYS[key + 1], ARGV[arg]) == 0 then
    return false
  end
  redis.call('SADD', KEYS[key], ARGV[arg])
  redis.call('HINCRBY', TOTALS, 'done', 1)
  return true
end

local function forgotten(_, arg)
  return redis.call('ZADD', FORGOTTEN, 'NX', ARGV[arg + 1], ARGV[arg]) == 1
end

local function totals(_, arg)
  return redis.call('HSETNX', TOTALS, ARGV[arg], ARGV[arg + 1]) == 1
end

if ARGV[1] == 'ledger' then
  local id, due = ARGV[2], tonumber(ARGV[4])
  if redis.call('HEXISTS', LEDGER, id) == 1 then
    return { 0, 1 }
  end
  save_ledger(id, cjson.decode(ARGV[3]))
  if due > 0 then
    redis.call('ZADD', WATCH, due, id)
  end
  for i = 6, 5 + tonumber(ARGV[5]) do
    redis.call('SADD', KEYS[OWN + 1], ARGV[i])
  end
  redis.call('PEXPIRE', KEYS[OWN + 1], 7 * WORKER_MS)
  return { 1, 0 }
end

local kinds = {
  job = { job, 2, 6 }, closed = { closed, 3, 2 }, record = { recorded, 3, 15 },
  adopted = { recorded, 3, 15 }, done = { done, 2, 1 },
  forgotten = { forgotten, 0, 2 }, totals = { totals, 0, 2 },
}
local write, keys_each, args_each = unpack(kinds[ARGV[1]])
local added, total = 0, (#ARGV - 1) / args_each
for i = 0, total - 1 do
  if write(OWN + 1 + keys_each * i, 2 + args_each * i) then
    added = added + 1
  end
end
return { added, total - added }
