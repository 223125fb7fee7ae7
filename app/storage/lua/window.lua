-- What a sliding window holds now, without changing it.
--
-- KEYS  1 the window's counter      ARGV  1 now in ms ("" = this server's clock) · 2 window in ms · 3 slot width in ms · 4 an amount
-- Returns {total, ms until all of it has left, ms until no more than the amount is left}.

local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
local window, width, down_to = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local first_live, total, slots = math.floor((now - window) / width), 0, {}
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local slot = tonumber(fields[i])
  if slot and slot >= first_live then
    slots[#slots + 1] = {slot, tonumber(fields[i + 1])}
    total = total + tonumber(fields[i + 1])
  end
end
if #slots == 0 then return {0, 0, 0} end
table.sort(slots, function(a, b) return a[1] < b[1] end)

local function left_in_ms(slot) return (slot + 1) * width + window - now end
local excess, room = total - down_to, 0
for _, slot in ipairs(slots) do
  if excess <= 0 then break end
  excess, room = excess - slot[2], left_in_ms(slot[1])
end
return {total, left_in_ms(slots[#slots][1]), room}
