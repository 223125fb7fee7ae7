-- End the reservations whose lease ran out: their process is gone. Each leaves the record that was prepared at its admission or at its last
-- checkpoint (`k`: with that cost), and for an hour a tombstone, by which a process that was only paused can correct what is booked here.
-- What budgets are charged without a checkpoint was decided by the admission, after the record was packed: it goes beside it.
--
-- KEYS  1 the leases · 2 the ledger stream      ARGV  1 now in ms ("" = this server's clock) · 2 how many at most · 3 prefix of reservations
-- Returns how many were ended.

local TOMBSTONE_MS = 3600000
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local lost = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, tonumber(ARGV[2]))
for _, call_id in ipairs(lost) do
  local call_key = ARGV[3] .. call_id
  local held = redis.call('HMGET', call_key, 'c', 'r', 'k')
  if held[1] then
    local claims = cmsgpack.unpack(held[1])
    local cost = tonumber(held[3]) or (claims[2][1] and claims[2][1][4])
    local position
    if cost then
      position = redis.call('XADD', KEYS[2], '*', 'r', held[2], 'k', string.format('%.0f', cost))
    else
      position = redis.call('XADD', KEYS[2], '*', 'r', held[2])
    end
    for _, claim in ipairs(claims[1]) do
      if claim[2] == 'c' then
        redis.call('ZREM', claim[1], call_id)
      elseif claim[2] == 't' and redis.call('HEXISTS', claim[1], 'h') == 1 then
        redis.call('HINCRBY', claim[1], 'h', string.format('%.0f', 0 - claim[6]))
      end
    end
    for _, claim in ipairs(claims[2]) do
      claim[4] = cost
      local state = redis.call('HMGET', claim[1], 'r', 's')
      if state[1] then
        redis.call('HINCRBY', claim[1], 'r', string.format('%.0f', 0 - math.min(claim[3], tonumber(state[1]))))
        if state[2] then
          redis.call('HINCRBY', claim[1], 's', string.format('%.0f', cost))
        else
          redis.call('HSET', claim[1], 'i', position)
        end
      end
    end
    redis.call('HSET', call_key, 't', cmsgpack.pack(claims))
    redis.call('HDEL', call_key, 'c', 'r', 'k')
    redis.call('PEXPIRE', call_key, TOMBSTONE_MS)
  end
  redis.call('ZREM', KEYS[1], call_id)
end
return #lost
