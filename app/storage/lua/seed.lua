-- Count an unseeded budget from what the ledger says. One that is seeded knows better and is left alone.
--
-- KEYS  1 the budget's counter
-- ARGV  1 spent in nanodollars · 2 when to forget it, in ms since 1970 ("" = never) · 3 the ticket that `may_seed` gave ("" = without)
--       4 when the budget was opened
-- Returns 1 when it is seeded now, 0 when a record came in since the ticket was given: the ledger must be read again.

local state = redis.call('HMGET', KEYS[1], 's', 'i', 'v')
if state[1] and (not state[3] or tonumber(ARGV[4]) <= tonumber(state[3])) then return 1 end
if ARGV[3] ~= '' and state[2] ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], 's', ARGV[1], 'v', ARGV[4])
redis.call('HSETNX', KEYS[1], 'r', 0)
redis.call('HDEL', KEYS[1], 'i', 'n')
if ARGV[2] ~= '' then redis.call('PEXPIREAT', KEYS[1], ARGV[2]) else redis.call('PERSIST', KEYS[1]) end
return 1
