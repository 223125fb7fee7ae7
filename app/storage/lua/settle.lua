-- End a reservation with the truth: correct the counters, release the rest, append the record. Once: a repeat finds nothing to end.
--
-- KEYS  1 the call's reservation · 2 the leases · 3 the ledger stream · 4 the epoch
-- ARGV  1 call id · 2 cost in nanodollars · 3 tokens used · 4 the record ("" = none: the call never reached an upstream)
--       5 the budgets' counters (msgpack) to book the cost in should there be no reservation, perhaps none; the call is then marked (`x`).
--         "" = neither
--       6 "1" when the record is a refusal: the call was perhaps admitted, for nobody heard the answer, but never reached an upstream
--         "2" when it says only that the call is lost: of a call that is known here, running or lost already, more is known than that
--
-- The counters' names come from the reservation itself; they lie in the same slot as the keys above. A window that has passed owes
-- nothing. A reservation whose lease ran out left a tombstone (`t`): what was booked for it then is corrected by the difference.
-- A server that lost its memory, or was away when the call was admitted, knows no reservation: the caller then names the budgets. The
-- mark is there so that a repeat books nothing, and so that an admission that was sent before and arrives after it reserves nothing.
--
-- Returns {1, position} when a reservation was ended here, {2, position} when a tombstone was corrected or the cost booked by name,
-- {0, position, epoch} when nothing was found (the record is appended all the same: the ledger ignores one that it has). The position is
-- the record's in the stream, or "".

local MARK_MS = 3600000
local held = redis.call('HMGET', KEYS[1], 'c', 'a', 't', 'x')
local cost, tokens, record = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local was_sent = record ~= '' and ARGV[6] ~= '1'
if held[4] and ARGV[6] ~= '1' or ARGV[6] == '2' and (held[1] or held[3]) then return {2, ''} end

local position = ''
if record ~= '' then position = redis.call('XADD', KEYS[3], '*', 'r', record) end

-- Count money as spent. In a budget that is not seeded yet, note instead which record its seed has to wait for.
local function spend(key, amount)
  if redis.call('HEXISTS', key, 's') == 1 then
    redis.call('HINCRBY', key, 's', string.format('%.0f', amount))
  elseif position ~= '' then
    redis.call('HSET', key, 'i', position)
  end
end

local function correct_limits(limits, admitted_at, still_holds)
  for _, claim in ipairs(limits) do
    local key, kind, width, amount = claim[1], claim[2], claim[5], claim[6]
    if kind == 'c' then
      redis.call('ZREM', key, ARGV[1])
    else
      local change = 0
      if still_holds and kind == 't' and redis.call('HEXISTS', key, 'h') == 1 then
        redis.call('HINCRBY', key, 'h', string.format('%.0f', 0 - amount))
      end
      if kind == 't' then change = tokens - amount elseif not was_sent then change = 0 - amount end
      local slot = math.floor(admitted_at / width)
      if change ~= 0 and redis.call('HEXISTS', key, slot) == 1 then
        redis.call('HINCRBY', key, slot, string.format('%.0f', change))
        redis.call('HINCRBY', key, 't', string.format('%.0f', change))
      end
    end
  end
end

redis.call('ZREM', KEYS[2], ARGV[1])
local ended = 0
if held[1] then
  ended = 1
  local claims = cmsgpack.unpack(held[1])
  correct_limits(claims[1], tonumber(held[2]), true)
  for _, claim in ipairs(claims[2]) do
    local reserved = redis.call('HGET', claim[1], 'r')
    if reserved then
      redis.call('HINCRBY', claim[1], 'r', string.format('%.0f', 0 - math.min(claim[3], tonumber(reserved))))
      if was_sent then spend(claim[1], cost) end
    end
  end
elseif held[3] then
  -- What was booked as lost is corrected to the truth, which may be that nothing was ever sent: the refusal then takes the lost record's
  -- place in the ledger.
  ended = 2
  local claims = cmsgpack.unpack(held[3])
  correct_limits(claims[1], tonumber(held[2]), false)
  for _, claim in ipairs(claims[2]) do spend(claim[1], cost - claim[4]) end
elseif ARGV[5] ~= '' then
  ended = 2
  for _, key in ipairs(cmsgpack.unpack(ARGV[5])) do spend(key, cost) end
else
  return {0, position, redis.call('HGET', KEYS[4], 't') or ''}
end
redis.call('DEL', KEYS[1])
if ARGV[5] ~= '' then
  redis.call('HSET', KEYS[1], 'x', 1)
  redis.call('PEXPIRE', KEYS[1], MARK_MS)
end
return {ended, position}
