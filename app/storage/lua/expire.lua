-- End the reservations whose lease ran out: their process is gone. Each leaves the record that was prepared at its admission.
--
-- KEYS  1 the leases · 2 the ledger stream      ARGV  1 now in ms ("" = this server's clock) · 2 how many at most · 3 prefix of reservations
-- Returns how many were ended.

local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local lost = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, tonumber(ARGV[2]))
for _, call_id in ipairs(lost) do
  local call_key = ARGV[3] .. call_id
  local held = redis.call('HMGET', call_key, 'c', 'r')
  if held[1] then
    local claims = cmsgpack.unpack(held[1])
    for _, claim in ipairs(claims[1]) do
      if claim[2] == 'c' then redis.call('ZREM', claim[1], call_id) end
    end
    for _, claim in ipairs(claims[2]) do
      if redis.call('EXISTS', claim[1]) == 1 then
        redis.call('HINCRBY', claim[1], 'r', string.format('%.0f', -claim[3]))
        redis.call('HINCRBY', claim[1], 's', string.format('%.0f', claim[4]))
      end
    end
    redis.call('XADD', KEYS[2], '*', 'r', held[2])
    redis.call('DEL', call_key)
  end
  redis.call('ZREM', KEYS[1], call_id)
end
return #lost
