-- What wrk sends. VERB is lease, heartbeat or ack; COUNT jobs a lease; BODIES a file with a heartbeat in each line;
-- SALT makes the requests of this run its own.
local verb, count, salt = os.getenv('VERB'), os.getenv('COUNT') or '1', os.getenv('SALT')
local number, held, bodies, others, jobs, acks = 0, {}, {}, 0, 0, 0
local json = { ['Content-Type'] = 'application/json' }
if verb == 'heartbeat' then
  for line in io.lines(os.getenv('BODIES')) do
    bodies[#bodies + 1] = line
  end
end

local threads = {}
function setup(thread)
  threads[#threads + 1] = thread
end

function request()
  number = number + 1
  if verb == 'heartbeat' then
    return wrk.format('POST', '/heartbeat', json, bodies[number % #bodies + 1])
  end
  local job = verb == 'ack' and table.remove(held)
  if job then
    return wrk.format('POST', '/ack', json, job)
  end
  local path = '/get_url?worker=machine-' .. number % 64 .. '&count=' .. count .. '&request=' .. salt .. number
  return wrk.format('GET', path)
end

function response(status, _, body)
  if status ~= 200 then
    others = others + 1
  elseif verb == 'lease' then
    for _ in string.gmatch(body, '"token"') do
      jobs = jobs + 1
    end
  elseif verb == 'ack' then
    if string.sub(body, 1, 2) == '{"' then
      acks = acks + 1
    end
    for url, token in string.gmatch(body, '"url": ?"([^"]+)", ?"token": ?"([^"]+)"') do
      held[#held + 1] = '{"url":"' .. url .. '","token":"' .. token
        .. '","path":"other/title of a video [BV].mp4","bytes":123456789,"seconds":12.5,"title":"title"}'
    end
  end
  told_jobs, told_acks, told_others = jobs, acks, others
end

function done(summary, latency)
  local sums = { jobs = 0, acks = 0, others = 0 }
  for _, thread in ipairs(threads) do
    for name in pairs(sums) do
      sums[name] = sums[name] + (thread:get('told_' .. name) or 0)
    end
  end
  local errors = summary.errors
  print(string.format(
    'RESULT {"requests": %d, "seconds": %.6f, "p50": %.3f, "p99": %.3f, "jobs": %d, "acks": %d, "others": %d, "broken": %d}',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1000, latency:percentile(99) / 1000,
    sums.jobs, sums.acks, sums.others, errors.connect + errors.read + errors.write + errors.timeout))
end
