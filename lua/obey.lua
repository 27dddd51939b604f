-- obey: a worker says which order it has obeyed last, and hears the one that waits for it. KEYS: the common ones,
-- orders. ARGV: worker, id of the order that it has obeyed or ''. Answers the order as JSON, or false for none.

local orders_key, worker = KEYS[OWN + 1], ARGV[1]

local order = order_of(orders_key, worker, now())
if not order or order.id == ARGV[2] then
  redis.call('HDEL', orders_key, worker)
  return false
end
return cjson.encode(order)
