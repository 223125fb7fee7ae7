-- End a reservation with the truth: correct the counters, release the rest, append the record. Once: a repeat finds nothing to end.
--
-- KEYS  1 the call's reservation · 2 the leases · 3 the ledger stream
-- ARGV  1 call id · 2 cost in nanodollars · 3 tokens used · 4 the record ("" = none: the call never reached an upstream)
--
-- The counters' names come from the reservation itself; they lie in the same slot as the keys above. A counter that is gone is left
-- alone: a window that has passed owes nothing, and a budget that is absent is seeded from the ledger, where this record will be.
--
-- Returns 1 when the reservation was ended here, 0 when it had ended before (the record is appended all the same: the ledger
-- ignores one that it has).

local held = redis.call('HMGET', KEYS[1], 'c', 'a')
local cost, tokens, record = ARGV[2], tonumber(ARGV[3]), ARGV[4]

if record ~= '' then redis.call('XADD', KEYS[3], '*', 'r', record) end
redis.call('ZREM', KEYS[2], ARGV[1])
if not held[1] then return 0 end

local claims, admitted_at = cmsgpack.unpack(held[1]), tonumber(held[2])
for _, claim in ipairs(claims[1]) do
  local key, kind, width, amount = claim[1], claim[2], claim[5], claim[6]
  if kind == 'c' then
    redis.call('ZREM', key, ARGV[1])
  else
    local change = 0
    if kind == 't' then change = tokens - amount elseif record == '' then change = -amount end
    local slot = math.floor(admitted_at / width)
    if change ~= 0 and redis.call('HEXISTS', key, slot) == 1 then
      redis.call('HINCRBY', key, slot, string.format('%.0f', change))
      redis.call('HINCRBY', key, 't', string.format('%.0f', change))
    end
  end
end
for _, claim in ipairs(claims[2]) do
  if redis.call('EXISTS', claim[1]) == 1 then
    redis.call('HINCRBY', claim[1], 'r', string.format('%.0f', -claim[3]))
    redis.call('HINCRBY', claim[1], 's', cost)
  end
end
redis.call('DEL', KEYS[1])
return 1
