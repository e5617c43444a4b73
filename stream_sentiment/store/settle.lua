-- SETTLE: remember how far the output topics need not be searched for copies again (docs/delivery.md, "Once in the topic itself").
--
-- KEYS[1]  meta  hash  token    (see acquire.lua)
--                      settled  positions in the output topics; every outbox entry written before they were taken is forgotten
--
-- ARGV[1]  token of the caller
-- ARGV[2]  the positions, encoded by the publisher
--
-- Lies in the partition's slot so that a failover takes it back together with the entries it speaks of.
--
-- Returns {'FENCED', stored token or ''} or {'OK', '1'}.
local token = redis.call('HGET', KEYS[1], 'token') or ''
if token ~= ARGV[1] then
  return {'FENCED', token}
end
redis.call('HSET', KEYS[1], 'settled', ARGV[2])
return {'OK', '1'}
