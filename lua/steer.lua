-- steer: what workers are to do, told with their next heartbeat. KEYS: the common ones, orders, logins.
-- ARGV: id of the order, keys of working.json as JSON, id of a login to begin or '', who wants it, then the workers.
-- Answers those of them that nobody heard of. What an order before it says is merged in, unless it is too old.

local orders_key, logins_key = KEYS[OWN + 1], KEYS[OWN + 2] -- HASH worker -> JSON; worker -> the login that was ordered last
local id, working, login, who = ARGV[1], cjson.decode(ARGV[2]), ARGV[3], ARGV[4]
local first_worker = 5
local at, unknown = now(), {}

for i = first_worker, #ARGV do
  local worker = ARGV[i]
  if redis.call('ZSCORE', WORKERS, worker) then
    local order = order_of(orders_key, worker, at) or { working = {} }
    for key, value in pairs(working) do
      order.working[key] = value
    end
    if login ~= '' then
      order.login, order.login_at = login, at
      redis.call('HSET', logins_key, worker, login)
    end
    order.id, order.who, order.at = id, who, at
    redis.call('HSET', orders_key, worker, cjson.encode(order))
  else
    unknown[#unknown + 1] = worker
  end
end
return unknown
