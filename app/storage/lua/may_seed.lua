-- May this budget be counted from the ledger now? Only when every record that belongs to it is there.
--
-- KEYS  1 the budget's counter · 2 the epoch · 3 the ledger stream · 4 the processes
-- ARGV  1 quarantine in ms · 2 when the budget was opened
--
-- 1. Not before the epoch is as old as the quarantine: by then every living process has told again what it knows.
-- 2. Not while the stream still holds a record up to the last that matters to this budget. That is noted in the counter (`i`): by
--    settlements that found it unseeded, or here, the first time somebody asks, as whatever is last in the stream.
-- 3. What was counted for a budget that was taken away since (`v`) is forgotten, and counted again after the quarantine (`n`): by then
--    every process knows of the new one, and none makes calls any more without booking them there.
-- 4. Neither is one that opens only later: its holder had none and may be making calls, and other processes learn of it by then. It waits
--    no longer than the quarantine, should the database's clock be ahead of this one.
--
-- Returns {1, the ticket that `seed` wants}, {0, ms to wait}, {2} when it is seeded already, or {3} without an epoch.

local UNSEEDED_KEPT_MS = 3600000
local epoch = redis.call('HGET', KEYS[2], 'b')
if not epoch then return {3} end
local state = redis.call('HMGET', KEYS[1], 's', 'i', 'v', 'n')
local t = redis.call('TIME')
local now, not_before = t[1] * 1000 + math.floor(t[2] / 1000), tonumber(state[4] or 0)
if state[1] then
  if not state[3] or tonumber(ARGV[2]) <= tonumber(state[3]) then return {2} end
  not_before = now + tonumber(ARGV[1])
  redis.call('HDEL', KEYS[1], 's')
  redis.call('HSET', KEYS[1], 'n', string.format('%.0f', not_before))
elseif not state[4] and tonumber(ARGV[2]) > now and redis.call('ZCARD', KEYS[4]) > 1 then
  not_before = math.min(tonumber(ARGV[2]), now + tonumber(ARGV[1]))
  redis.call('HSET', KEYS[1], 'n', string.format('%.0f', not_before))
  if redis.call('PTTL', KEYS[1]) < 0 then redis.call('PEXPIRE', KEYS[1], UNSEEDED_KEPT_MS) end
end
local wait = math.max(tonumber(epoch) + tonumber(ARGV[1]), not_before) - now
if wait > 0 then return {0, wait} end

local last = state[2]
if not last then
  local newest = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)
  last = newest[1] and newest[1][1] or '0-0'
  redis.call('HSET', KEYS[1], 'i', last)
  if redis.call('PTTL', KEYS[1]) < 0 then redis.call('PEXPIRE', KEYS[1], UNSEEDED_KEPT_MS) end
end
if last ~= '0-0' and #redis.call('XRANGE', KEYS[3], '-', last, 'COUNT', 1) > 0 then return {0, 50} end
return {1, last}
