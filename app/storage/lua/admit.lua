-- Claim every limit and budget of one call, all or nothing.
--
-- KEYS  1 the call's reservation · 2 the leases · 3… the counters of the limits, then of the budgets, in the claims' order
-- ARGV  1 call id · 2 now in ms ("" = this server's clock) · 3 lease in ms · 4 the record to write if the process is lost
--       5 the claims (msgpack): { {{key, kind, limit, window_ms, width_ms, amount} …}, {{key, hard or -1, amount, lost_cost} …} }
--
-- 1. Look at every counter without changing what it says (slots that have left a window are forgotten: they no longer count).
-- 2. The first that cannot take the claim ends the script: nothing was written, so a refusal costs no other limit anything.
-- 3. Otherwise write all claims, the reservation and its lease. Nothing can come between: scripts are atomic.
--
-- Returns {0, now, (remaining, reset_ms) per limit, (spent, reserved) per budget before this claim}
--      or {1, index, remaining, retry_after_ms} · {2, index, spent, reserved} · {3, index …} for budgets that are not seeded.

local call_key, leases = KEYS[1], KEYS[2]
local call_id, lease_ms, record = ARGV[1], tonumber(ARGV[3]), ARGV[4]
local claims = cmsgpack.unpack(ARGV[5])
local limits, budgets = claims[1], claims[2]

local now = tonumber(ARGV[2])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end

-- The live total of a sliding window. Fields: slot number → amount, t → total, o → oldest slot.
local function window_total(key, window, width)
  local head = redis.call('HMGET', key, 't', 'o')
  if not head[1] then return 0 end
  local total, oldest = tonumber(head[1]), tonumber(head[2])
  local first_live = math.floor((now - window) / width)
  if oldest >= first_live then return total end
  local fields = redis.call('HGETALL', key)
  local gone, kept = {}, nil
  for i = 1, #fields, 2 do
    local slot = tonumber(fields[i])
    if slot then
      if slot < first_live then
        total = total - tonumber(fields[i + 1])
        gone[#gone + 1] = fields[i]
      elseif not kept or slot < kept then
        kept = slot
      end
    end
  end
  if not kept then
    redis.call('DEL', key)
    return 0
  end
  redis.call('HDEL', key, unpack(gone))
  redis.call('HSET', key, 't', string.format('%.0f', total), 'o', kept)
  return total
end

-- When `excess` of what a full window holds will have left it.
local function free_in_ms(key, window, width, excess)
  local fields, slots = redis.call('HGETALL', key), {}
  for i = 1, #fields, 2 do
    local slot = tonumber(fields[i])
    if slot then slots[#slots + 1] = {slot, tonumber(fields[i + 1])} end
  end
  table.sort(slots, function(a, b) return a[1] < b[1] end)
  for _, slot in ipairs(slots) do
    excess = excess - slot[2]
    if excess <= 0 then return (slot[1] + 1) * width + window - now end
  end
  return window
end

local totals, unseeded = {}, {}
for i, claim in ipairs(limits) do
  local key, kind, limit, window, width, amount = KEYS[2 + i], claim[2], claim[3], claim[4], claim[5], claim[6]
  local total
  if kind == 'c' then
    redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
    total = redis.call('ZCARD', key)
  else
    total = window_total(key, window, width)
  end
  if total + amount > limit then
    local retry = 1000
    if kind ~= 'c' then retry = free_in_ms(key, window, width, total + amount - limit) end
    return {1, i, math.max(0, limit - total), retry}
  end
  totals[i] = total
end

local spent, reserved = {}, {}
for i, claim in ipairs(budgets) do
  local state = redis.call('HMGET', KEYS[2 + #limits + i], 's', 'r')
  if state[1] then
    spent[i], reserved[i] = tonumber(state[1]), tonumber(state[2])
    if claim[2] >= 0 and spent[i] + reserved[i] + claim[3] > claim[2] and claim[3] > 0 then
      return {2, i, spent[i], reserved[i]}
    end
    if claim[2] >= 0 and claim[3] == 0 and spent[i] >= claim[2] then
      return {2, i, spent[i], reserved[i]}
    end
  else
    unseeded[#unseeded + 1] = i
  end
end
if #unseeded > 0 then return {3, unpack(unseeded)} end

local answer = {0, now}
for i, claim in ipairs(limits) do
  local key, kind, limit, window, width, amount = KEYS[2 + i], claim[2], claim[3], claim[4], claim[5], claim[6]
  if kind == 'c' then
    redis.call('ZADD', key, now + lease_ms, call_id)
    redis.call('PEXPIRE', key, lease_ms * 2)
    answer[#answer + 1] = limit - totals[i] - amount
    answer[#answer + 1] = 0
  else
    local slot = math.floor(now / width)
    redis.call('HINCRBY', key, slot, amount)
    if redis.call('HINCRBY', key, 't', amount) == amount then redis.call('HSETNX', key, 'o', slot) end
    redis.call('PEXPIRE', key, window + 2 * width)
    answer[#answer + 1] = limit - totals[i] - amount
    answer[#answer + 1] = (slot + 1) * width + window - now
  end
end
for i, claim in ipairs(budgets) do
  redis.call('HINCRBY', KEYS[2 + #limits + i], 'r', string.format('%.0f', claim[3]))
  answer[#answer + 1] = spent[i]
  answer[#answer + 1] = reserved[i]
end
redis.call('HSET', call_key, 'c', ARGV[5], 'r', record, 'a', now)
redis.call('ZADD', leases, now + lease_ms, call_id)
return answer
