-- Let a running call hold budgets that were made after it was admitted: its cost will be spent there too. Nothing is refused here.
--
-- KEYS  1 the call's reservation      ARGV  1 the budgets (msgpack): {{key, hard or -1, amount, lost_cost, is_expected} …}
-- What the call holds of its other budgets it holds of these; the amounts given are for a call that holds none.

local KEPT_MS = 8 * 24 * 3600 * 1000
local packed = redis.call('HGET', KEYS[1], 'c')
if not packed then return 0 end
local claims = cmsgpack.unpack(packed)
local known, first = {}, claims[2][1]
for _, claim in ipairs(claims[2]) do known[claim[1]] = true end
for _, claim in ipairs(cmsgpack.unpack(ARGV[1])) do
  if not known[claim[1]] then
    if first then claim[3], claim[4] = first[3], first[4] end
    redis.call('HINCRBY', claim[1], 'r', string.format('%.0f', claim[3]))
    if redis.call('HEXISTS', claim[1], 's') == 0 then redis.call('PEXPIRE', claim[1], KEPT_MS) end
    claims[2][#claims[2] + 1] = claim
  end
end
redis.call('HSET', KEYS[1], 'c', cmsgpack.pack(claims))
return 1
