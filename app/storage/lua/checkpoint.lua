-- Note how far calls that run have come: what is charged and recorded should their process die from now on.
--
-- KEYS  1 the leases (for its slot)      ARGV  1 prefix of reservations · 2… call id, cost in nanodollars, record; again and again
-- A call that has ended is left alone.

for i = 2, #ARGV, 3 do
  local call_key = ARGV[1] .. ARGV[i]
  if redis.call('HEXISTS', call_key, 'c') == 1 then redis.call('HSET', call_key, 'k', ARGV[i + 1], 'r', ARGV[i + 2]) end
end
return 1
