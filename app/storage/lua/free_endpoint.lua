-- An attempt has left its endpoint: free its place, and correct the tokens it was thought to need to those it used.
--
-- KEYS  1 who is there · 2 tokens of the last minute
-- ARGV  1 attempt · 2 the slot it was counted in · 3 by how much to correct
redis.call('ZREM', KEYS[1], ARGV[1])
if tonumber(ARGV[3]) ~= 0 and redis.call('HEXISTS', KEYS[2], ARGV[2]) == 1 then
  redis.call('HINCRBY', KEYS[2], ARGV[2], ARGV[3])
end
return 1
