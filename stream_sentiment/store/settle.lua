-- SETTLE: remember from where the output topics must be searched for copies (docs/delivery.md, "Once in the topic itself").
--
-- KEYS[1]  meta    hash  token, wm  (see acquire.lua)
--                        settled    positions in the output topics; every outbox entry that may have a copy below them is forgotten
-- KEYS[2]  outbox  hash  <offset>:<number> -> encoded record
--
-- ARGV[1]  token of the caller
-- ARGV[2]  the watermark the caller holds
-- ARGV[3]  the positions, encoded by the publisher
-- ARGV[4..]  the fields that the caller knows to be in the outbox
--
-- The positions lie in the partition's slot, so that a failover takes them back together with the entries they speak of. Watermark and
-- fields are compared because a failover that the caller has not noticed may have brought back what the caller believes forgotten.
--
-- Returns {'FENCED', stored token or ''}, {'GAP', wm or ''}, or {'OK', '1'}.
local token = redis.call('HGET', KEYS[1], 'token') or ''
if token ~= ARGV[1] then
  return {'FENCED', token}
end
local stored = redis.call('HGET', KEYS[1], 'wm') or ''
if tonumber(stored) ~= tonumber(ARGV[2]) then
  return {'GAP', stored}
end
local known = {}
for i = 4, #ARGV do
  known[ARGV[i]] = true
end
for _, field in ipairs(redis.call('HKEYS', KEYS[2])) do
  if not known[field] then
    return {'GAP', stored}
  end
end
redis.call('HSET', KEYS[1], 'settled', ARGV[3])
return {'OK', '1'}
