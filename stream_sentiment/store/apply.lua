-- APPLY: states, deadlines, outputs and watermark of one partition batch, all or nothing (docs/delivery.md, step 4).
--
-- KEYS[1]  meta    hash    token, wm, clock (see acquire.lua)
-- KEYS[2]  outbox  hash    <offset>:<sequence> -> encoded record
-- KEYS[3]  due     zset    conversation -> event time at which a timer falls due (see due.lua)
-- KEYS[4..n+3]     string  states of the n conversations that the batch touched
--
-- ARGV[1]  token of the caller
-- ARGV[2]  first: the watermark the caller holds; the batch begins there
-- ARGV[3]  next: the watermark after the batch (offset of its last record + 1)
-- ARGV[4]  time to live of the states in milliseconds
-- ARGV[5]  clock of the partition after the batch, or '': none of its records has an event time
-- ARGV[6..n+5]     the states, in the order of KEYS; '' deletes the key
-- ARGV[n+6]        m: number of deadlines that change
-- ARGV[n+7..n+6+2m]  deadlines: conversation, milliseconds, conversation, milliseconds, ...; '' for milliseconds: there is none any more
-- ARGV[n+7+2m..]   outbox entries: field, record, field, record, ...
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
if ARGV[5] == '' then
  redis.call('HSET', KEYS[1], 'wm', ARGV[3])
else
  redis.call('HSET', KEYS[1], 'wm', ARGV[3], 'clock', ARGV[5])
end
local n = #KEYS - 3
for i = 1, n do
  local state = ARGV[5 + i]
  if state == '' then
    redis.call('DEL', KEYS[3 + i])
  else
    redis.call('SET', KEYS[3 + i], state, 'PX', ARGV[4])
  end
end
local m = tonumber(ARGV[n + 6])
for i = n + 7, n + 5 + 2 * m, 2 do
  if ARGV[i + 1] == '' then
    redis.call('ZREM', KEYS[3], ARGV[i])
  else
    redis.call('ZADD', KEYS[3], ARGV[i + 1], ARGV[i])
  end
end
for i = n + 7 + 2 * m, #ARGV, 2 do
  redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
end
return {'OK', ARGV[3], redis.call('HLEN', KEYS[2])}
