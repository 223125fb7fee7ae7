-- What a sliding window holds now, without changing it.
--
-- KEYS  1 the window's counter      ARGV  1 now in ms ("" = this server's clock) · 2 window in ms · 3 slot width in ms
-- Returns {total, ms until all of it has left}.

local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local window, width = tonumber(ARGV[2]), tonumber(ARGV[3])
local first_live, total, newest = math.floor((now - window) / width), 0, nil
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local slot = tonumber(fields[i])
  if slot and slot >= first_live then
    total = total + tonumber(fields[i + 1])
    if not newest or slot > newest then newest = slot end
  end
end
if not newest then return {0, 0} end
return {total, (newest + 1) * width + window - now}
