-- Claim every limit and budget of one call, all or nothing.
--
-- KEYS  1 the call's reservation · 2 the leases · 3… the counters of the limits, then of the budgets, in the claims' order · last: the epoch
-- ARGV  1 call id · 2 now in ms ("" = this server's clock) · 3 lease in ms · 4 the record to write if the process is lost
--       5 the claims (msgpack):
--         { {{key, kind, limit, window_ms, width_ms, amount, least} …},       limits: what is wanted, and with how little it can do
--           {{key, hard or -1, 0, lost_cost, is_expected, opened} …},          budgets: the third becomes what is reserved
--           {fixed, unit, most, floor, is_elastic, expected} }                           the need: see `app.domain.budget.Need`
--
-- 1. Look at every counter without changing what it says (slots that have left a window are forgotten: they no longer count).
-- 2. The first that cannot take the claim ends the script: nothing was written, so a refusal costs no other limit anything.
-- 3. Every budget says how many output tokens it can pay for; the call is granted the fewest, and reserves for those in all of them.
-- 4. Write all claims, the reservation and its lease. Nothing can come between: scripts are atomic.
--
-- Returns {0, now, granted tokens, (remaining, reset_ms, claimed) per limit, (spent, reserved, claimed) per budget}, as before this claim
--      or {1, index, remaining, retry_after_ms} · {2, index, spent, reserved} · {3, index …} for budgets that are not seeded · {4} without an epoch
--      · {5} when the call is over (see settle.lua): this command came late, and nobody waits for its answer.

if redis.call('EXISTS', KEYS[#KEYS]) == 0 then return {4} end  -- this server has lost its memory

local SOON_MS = 1000
local call_key, leases = KEYS[1], KEYS[2]
local call_id, lease_ms, record = ARGV[1], tonumber(ARGV[3]), ARGV[4]
local claims = cmsgpack.unpack(ARGV[5])
local limits, budgets, need = claims[1], claims[2], claims[3]

local now = tonumber(ARGV[2])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end

-- A call that holds something already (nobody heard the first answer, or it needs something else now) gives that back first, and has it
-- again where it is refused. Nobody can come in between.
local earlier = redis.call('HMGET', call_key, 'c', 'a', 'x')
if earlier[3] then return {5} end
local function hold(sign)
  local had = cmsgpack.unpack(earlier[1])
  for _, claim in ipairs(had[1]) do
    local key, kind, slot = claim[1], claim[2], math.floor(tonumber(earlier[2]) / math.max(1, claim[5]))
    if kind == 'c' then
      if sign < 0 then redis.call('ZREM', key, call_id) else redis.call('ZADD', key, now + lease_ms, call_id) end
    elseif redis.call('HEXISTS', key, slot) == 1 then
      redis.call('HINCRBY', key, slot, sign * claim[6])
      redis.call('HINCRBY', key, 't', sign * claim[6])
      if kind == 't' then redis.call('HINCRBY', key, 'h', sign * claim[6]) end
    end
  end
  for _, claim in ipairs(had[2]) do
    if redis.call('EXISTS', claim[1]) == 1 then
      redis.call('HINCRBY', claim[1], 'r', string.format('%.0f', sign * claim[3]))
    end
  end
end
local function refused(answer)
  if earlier[1] then hold(1) end
  return answer
end
if earlier[1] then hold(-1) end

-- The live total of a sliding window. Fields: slot number → amount, t → total, o → oldest slot, and h → how many tokens of it are only
-- thought to be needed, by calls that still run.
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

-- How many output tokens one budget grants, or nil when it cannot.
--
-- fixed and reservations are nanodollars, unit is picodollars per token. A call whose maximum is its caller's own gets all of it or waits,
-- unless even the unspent money cannot pay for that. One whose maximum is only the model's gets, near the limit, what a tenth of the
-- unspent money buys: ten callers share what one could hold. Where calls are expected to need less, no more than that is held.
local function granted(hard, spent, reserved, is_expected)
  local fixed, unit, most, floor = need[1], need[2], need[3], math.min(need[4], need[3])
  local expected = math.min(math.max(floor, need[6]), most)
  local function buys(money)
    if money < fixed then return -1 end
    if unit == 0 then return most end
    return math.min(most, math.floor((money - fixed) * 1000 / unit))
  end
  local unspent = hard - spent
  if spent >= hard and fixed + unit > 0 or buys(unspent) < floor then return nil end
  local wanted = buys(unspent)
  if is_expected == 1 then
    wanted = math.min(wanted, expected)
  elseif need[5] == 1 then
    wanted = math.min(wanted, math.max(expected, buys(unspent / 10)))
  end
  local free = buys(unspent - reserved)
  if free >= wanted then return wanted end
  if need[5] == 1 and free >= floor then return free end
  return nil
end

local totals, unseeded = {}, {}
for i, claim in ipairs(limits) do
  local key, kind, limit, window, width, amount, least =
    KEYS[2 + i], claim[2], claim[3], claim[4], claim[5], claim[6], claim[7]
  local total
  if kind == 'c' then
    redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
    total = redis.call('ZCARD', key)
  else
    total = window_total(key, window, width)
  end
  if total + least > limit then
    local retry = 1000
    if kind ~= 'c' then retry = free_in_ms(key, window, width, total + least - limit) end
    if kind == 't' then
      -- What running calls hold and do not use comes back as they end, long before the window has passed.
      local held = tonumber(redis.call('HGET', key, 'h') or 0)
      if total - held + least <= limit then retry = math.min(retry, SOON_MS) end
    end
    return refused({1, i, math.max(0, limit - total), retry})
  end
  claim[6] = math.min(amount, limit - total)
  totals[i] = total
end

-- A counter that was counted for a budget which was taken away since (`v`: when that one was opened) has missed calls: it is not seeded.
local spent, reserved, opened, tokens = {}, {}, {}, need[3]
for i, claim in ipairs(budgets) do
  local state = redis.call('HMGET', KEYS[2 + #limits + i], 's', 'r', 'v')
  opened[i] = state[3]
  if state[1] and (not state[3] or claim[6] <= tonumber(state[3])) then
    spent[i], reserved[i] = tonumber(state[1]), tonumber(state[2])
    if claim[2] >= 0 then
      local some = granted(claim[2], spent[i], reserved[i], claim[5])
      if not some then return refused({2, i, spent[i], reserved[i]}) end
      tokens = math.min(tokens, some)
    end
  else
    unseeded[#unseeded + 1] = i
  end
end
if #unseeded > 0 then return refused({3, unpack(unseeded)}) end

local answer = {0, now, tokens}
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
    if kind == 't' then redis.call('HINCRBY', key, 'h', amount) end
    redis.call('PEXPIRE', key, window + 2 * width)
    answer[#answer + 1] = limit - totals[i] - amount
    answer[#answer + 1] = (slot + 1) * width + window - now
  end
  answer[#answer + 1] = amount
end
local amount = need[1] + math.ceil(tokens * need[2] / 1000)
for i, claim in ipairs(budgets) do
  claim[3], claim[4] = amount, math.min(claim[4], amount)
  redis.call('HINCRBY', KEYS[2 + #limits + i], 'r', string.format('%.0f', amount))
  if not opened[i] then redis.call('HSET', KEYS[2 + #limits + i], 'v', string.format('%.0f', claim[6])) end
  answer[#answer + 1] = spent[i]
  answer[#answer + 1] = reserved[i]
  answer[#answer + 1] = amount
end
if earlier[1] then redis.call('HDEL', call_key, 'k') end
redis.call('HSET', call_key, 'c', cmsgpack.pack(claims), 'r', record, 'a', now)
redis.call('ZADD', leases, now + lease_ms, call_id)
return answer
