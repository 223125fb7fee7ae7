-- Take or keep an office. KEYS 1 the office      ARGV 1 who asks · 2 for how long, in ms
-- Returns 1 when the asker holds it now.

local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
