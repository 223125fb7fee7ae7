-- Tell a server that lost its memory of a call that is still running. One that it knows of, running or ended, is left alone.
--
-- KEYS  1 the call's reservation · 2 the leases
-- ARGV  1 call id · 2 now in ms ("" = this server's clock) · 3 lease in ms · 4 the record to write if the process is lost
--       5 the claims as they were granted (msgpack, see admit.lua)
--
-- The slots it takes part in and the money it holds are counted again; what it took from windows is not (they may admit twice their limit
-- once, after such a loss). A budget may hold reservations before it is seeded: `r` without `s`.
--
-- Returns 1 when it was written here.

local KEPT_MS = 8 * 24 * 3600 * 1000
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local now, lease_ms = tonumber(ARGV[2]), tonumber(ARGV[3])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local claims = cmsgpack.unpack(ARGV[5])
for _, claim in ipairs(claims[1]) do
  if claim[2] == 'c' then
    redis.call('ZADD', claim[1], now + lease_ms, ARGV[1])
    redis.call('PEXPIRE', claim[1], lease_ms * 2)
  end
end
for _, claim in ipairs(claims[2]) do
  redis.call('HINCRBY', claim[1], 'r', string.format('%.0f', claim[3]))
  if redis.call('HEXISTS', claim[1], 's') == 0 then redis.call('PEXPIRE', claim[1], KEPT_MS) end
end
redis.call('HSET', KEYS[1], 'c', ARGV[5], 'r', ARGV[4], 'a', 0)
redis.call('ZADD', KEYS[2], now + lease_ms, ARGV[1])
return 1
