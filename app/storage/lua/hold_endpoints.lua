-- Renew the leases of attempts that are still with their endpoints.
--
-- KEYS  who is there, one key for each attempt · ARGV  1 lease in ms · 2… the attempts, in the keys' order
local t = redis.call('TIME')
local ends = t[1] * 1000 + math.floor(t[2] / 1000) + tonumber(ARGV[1])
for i, key in ipairs(KEYS) do redis.call('ZADD', key, 'XX', ends, ARGV[i + 1]) end
return #KEYS
