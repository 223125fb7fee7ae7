-- What this server's memory is worth: one epoch lasts for as long as it forgets nothing.
--
-- KEYS  1 the epoch · 2 the leases · 3 the watermark of the drainer · 4 the processes
-- ARGV  1 a token for a new epoch · 2 the process that asks ("" = nobody) · 3 how long a process counts as living, in ms
--       4 pattern of the budgets' counters · 5 prefix of reservations
--
-- An epoch is missing when everything was lost (FLUSHALL, an empty restart). It is over when the server is another one than the one
-- it began on (restarted from a log that lacks the last second, or a replica that was promoted): the budgets are then forgotten, to be
-- counted again from the ledger, and what is reserved is summed up from the reservations that are left.
--
-- Returns {token, began at, now, watermark or "", living processes}; times in ms.

local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local server = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') or ''
local epoch = redis.call('HMGET', KEYS[1], 't', 'b', 's')

if epoch[3] ~= server then
  if epoch[1] then
    local cursor = '0'
    repeat
      local page = redis.call('SCAN', cursor, 'MATCH', ARGV[4], 'COUNT', 1000)
      cursor = page[1]
      for _, key in ipairs(page[2]) do redis.call('UNLINK', key) end
    until cursor == '0'
    for _, call_id in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
      local packed = redis.call('HGET', ARGV[5] .. call_id, 'c')
      if packed then
        for _, claim in ipairs(cmsgpack.unpack(packed)[2]) do
          redis.call('HINCRBY', claim[1], 'r', string.format('%.0f', claim[3]))
        end
      end
    end
  end
  epoch = {ARGV[1], string.format('%.0f', now), server}
  redis.call('HSET', KEYS[1], 't', epoch[1], 'b', epoch[2], 's', epoch[3])
end

if ARGV[2] ~= '' then redis.call('ZADD', KEYS[4], now, ARGV[2]) end
redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', now - tonumber(ARGV[3]))
return {epoch[1], tonumber(epoch[2]), now, redis.call('GET', KEYS[3]) or '', redis.call('ZCARD', KEYS[4])}
