-- Extend the leases of calls that still run, and the concurrency slots they hold. A call whose lease has ended stays ended.
--
-- KEYS  1 the leases      ARGV  1 now in ms ("" = this server's clock) · 2 lease in ms · 3 prefix of reservations · 4… call ids
-- Returns the ids of those that hold no lease any more.

local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local lease_ms, gone = tonumber(ARGV[2]), {}
for i = 4, #ARGV do
  if redis.call('ZSCORE', KEYS[1], ARGV[i]) then
    redis.call('ZADD', KEYS[1], 'XX', now + lease_ms, ARGV[i])
    local packed = redis.call('HGET', ARGV[3] .. ARGV[i], 'c')
    if packed then
      for _, claim in ipairs(cmsgpack.unpack(packed)[1]) do
        if claim[2] == 'c' then
          redis.call('ZADD', claim[1], 'XX', now + lease_ms, ARGV[i])
          redis.call('PEXPIRE', claim[1], lease_ms * 2)
        end
      end
    end
  else
    gone[#gone + 1] = ARGV[i]
  end
end
return gone
