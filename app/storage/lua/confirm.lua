-- Forget records that are in the ledger, and say how far it has come.
--
-- KEYS  1 the ledger stream · 2 the watermark      ARGV  1… positions, in order

redis.call('XDEL', KEYS[1], unpack(ARGV))
redis.call('SET', KEYS[2], ARGV[#ARGV])
return 1
