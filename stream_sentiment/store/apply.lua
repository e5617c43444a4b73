-- APPLY: states, outputs and watermark of one partition batch, all or nothing (docs/delivery.md, step 4).
--
-- KEYS[1]  meta    hash    token, wm (see acquire.lua)
-- KEYS[2]  outbox  hash    <offset>:<sequence> -> encoded record
-- KEYS[3..n+2]     string  states of the n conversations that the batch touched
--
-- ARGV[1]  token of the caller
-- ARGV[2]  first: the watermark the caller holds; the batch begins there
-- ARGV[3]  next: the watermark after the batch (offset of its last record + 1)
-- ARGV[4]  time to live of the states in milliseconds
-- ARGV[5..n+4]     the states, in the order of KEYS; '' deletes the key
-- ARGV[n+5..]      outbox entries: field, record, field, record, ...
--
-- Returns {'FENCED', stored token or ''}     someone else owns the partition; nothing written
--         {'ALREADY', wm}                    the batch lies before the watermark: a lost reply, or redone work; nothing written
--         {'GAP', wm or ''}                  the batch does not begin at the watermark; nothing written
--         {'OK', wm, entries in the outbox}  written
-- The stored watermark leaves as a string. Offsets are compared as doubles: exact up to 2^53, about 9 * 10^15.
local token = redis.call('HGET', KEYS[1], 'token') or ''
if token ~= ARGV[1] then
  return {'FENCED', token}
end
local stored = redis.call('HGET', KEYS[1], 'wm')
if not stored then
  return {'GAP', ''}
end
local wm = tonumber(stored)
if wm >= tonumber(ARGV[3]) then
  return {'ALREADY', stored}
end
if wm ~= tonumber(ARGV[2]) then
  return {'GAP', stored}
end
-- The watermark is written first: a command that Redis may refuse for lack of memory must come before any that it may not
-- refuse (DEL), because only the first write of a script is refused; after it the script runs to its end.
redis.call('HSET', KEYS[1], 'wm', ARGV[3])
local n = #KEYS - 2
for i = 1, n do
  local state = ARGV[4 + i]
  if state == '' then
    redis.call('DEL', KEYS[2 + i])
  else
    redis.call('SET', KEYS[2 + i], state, 'PX', ARGV[4])
  end
end
for i = n + 5, #ARGV, 2 do
  redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
end
return {'OK', ARGV[3], redis.call('HLEN', KEYS[2])}
