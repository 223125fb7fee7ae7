-- Claim what one attempt takes of its endpoint's own limits, all or nothing.
--
-- KEYS  1 who is there (sorted set: attempt → end of its lease) · 2 requests · 3 tokens of the last minute (hashes: slot → amount)
-- ARGV  1 attempt · 2 lease in ms · 3 max_concurrency · 4 requests_per_minute · 5 tokens_per_minute (-1: none) · 6 tokens · 7 now in ms ("": the server's)
--
-- A minute has 64 slots; a slot counts until all of it is older than a minute.
-- Returns {0, slot} or {which, retry_after_ms}: 1 concurrency, 2 requests, 3 tokens.

local WINDOW, WIDTH, SOON = 60000, 938, 250
local now = tonumber(ARGV[7])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end

if tonumber(ARGV[3]) >= 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
  if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[3]) then return {1, SOON} end
end

-- When `amount` more will fit into the minute; 0: now.
local function wait_ms(key, limit, amount)
  if limit < 0 then return 0 end
  local fields, slots, total = redis.call('HGETALL', key), {}, 0
  local first = math.floor((now - WINDOW) / WIDTH)
  for i = 1, #fields, 2 do
    local slot, held = tonumber(fields[i]), tonumber(fields[i + 1])
    if slot < first then
      redis.call('HDEL', key, fields[i])
    else
      slots[#slots + 1] = {slot, held}
      total = total + held
    end
  end
  local excess = total + math.min(amount, limit) - limit  -- what is larger than the whole limit may go when nothing else does
  if excess <= 0 then return 0 end
  table.sort(slots, function(a, b) return a[1] < b[1] end)
  for _, slot in ipairs(slots) do
    excess = excess - slot[2]
    if excess <= 0 then return (slot[1] + 1) * WIDTH + WINDOW - now end
  end
  return WINDOW
end

local tokens = tonumber(ARGV[6])
local wait = wait_ms(KEYS[2], tonumber(ARGV[4]), 1)
if wait > 0 then return {2, wait} end
wait = wait_ms(KEYS[3], tonumber(ARGV[5]), tokens)
if wait > 0 then return {3, wait} end

local slot = math.floor(now / WIDTH)
if tonumber(ARGV[3]) >= 0 then
  redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), ARGV[1])
  redis.call('PEXPIRE', KEYS[1], 2 * tonumber(ARGV[2]))
end
if tonumber(ARGV[4]) >= 0 then
  redis.call('HINCRBY', KEYS[2], slot, 1)
  redis.call('PEXPIRE', KEYS[2], WINDOW + 2 * WIDTH)
end
if tonumber(ARGV[5]) >= 0 then
  redis.call('HINCRBY', KEYS[3], slot, tokens)
  redis.call('PEXPIRE', KEYS[3], WINDOW + 2 * WIDTH)
end
return {0, slot}
