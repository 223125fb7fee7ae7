-- Reserve for more output tokens of a call that runs. What cannot be reserved is not granted; nothing is ever taken back here.
--
-- KEYS  1 the call's reservation      ARGV  1 how many output tokens in all are wanted
-- Returns how many are granted in all now, or -1 when the reservation has ended.

local packed = redis.call('HGET', KEYS[1], 'c')
if not packed then return -1 end
local claims = cmsgpack.unpack(packed)
local budgets, need = claims[2], claims[3]
local fixed, unit, most = need[1], need[2], need[3]
if unit == 0 or #budgets == 0 then return most end

local held = budgets[1][3]
local tokens = math.min(tonumber(ARGV[1]), most)
for _, claim in ipairs(budgets) do
  if claim[2] >= 0 then
    local state = redis.call('HMGET', claim[1], 's', 'r')
    local free = claim[2] - (tonumber(state[1]) or claim[2]) - (tonumber(state[2]) or 0)
    tokens = math.min(tokens, math.floor((held + math.max(0, free) - fixed) * 1000 / unit))
  end
end
local amount = fixed + math.ceil(tokens * unit / 1000)
if amount <= held then return math.floor((held - fixed) * 1000 / unit) end
for _, claim in ipairs(budgets) do
  claim[3] = amount
  if redis.call('EXISTS', claim[1]) == 1 then
    redis.call('HINCRBY', claim[1], 'r', string.format('%.0f', amount - held))
  end
end
redis.call('HSET', KEYS[1], 'c', cmsgpack.pack(claims))
return tokens
