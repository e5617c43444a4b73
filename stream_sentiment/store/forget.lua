-- FORGET: remove delivered entries from the outbox (docs/delivery.md, step 5).
--
-- KEYS[1]  meta    hash  token (see acquire.lua)
-- KEYS[2]  outbox  hash  <offset>:<sequence> -> encoded record
--
-- ARGV[1]  token of the caller
-- ARGV[2..]  fields
--
-- Fenced, although removing a delivered entry is harmless in itself: after Redis lost writes the field may name a record that was
-- made anew and is not delivered yet. The new owner publishes the entry again, under the same id.
--
-- Returns {'FENCED', stored token or ''} or {'OK', number of entries removed}.
local token = redis.call('HGET', KEYS[1], 'token') or ''
if token ~= ARGV[1] then
  return {'FENCED', token}
end
local removed = 0
for i = 2, #ARGV do
  removed = removed + redis.call('HDEL', KEYS[2], ARGV[i])
end
return {'OK', removed}
