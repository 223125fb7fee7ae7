-- Create an absent budget counter from what the ledger says. One that exists knows better and is left alone.
--
-- KEYS  1 the budget's counter      ARGV  1 spent in nanodollars · 2 when to forget it, in ms since the epoch ("" = never)
-- Returns 1 when it was created here.

if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], 's', ARGV[1], 'r', 0)
if ARGV[2] ~= '' then redis.call('PEXPIREAT', KEYS[1], ARGV[2]) end
return 1
