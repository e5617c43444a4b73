-- TICK: what fell due in conversations while nobody wrote, all or nothing (docs/delivery.md, "Timers").
--
-- KEYS[1]  meta    hash    token, wm (see acquire.lua)
-- KEYS[2]  outbox  hash    <watermark>:t:<due>:<sequence>:<token> -> encoded record
-- KEYS[3]  due     zset    conversation -> event time at which a timer falls due (see due.lua)
-- KEYS[4..n+3]     string  states of the n conversations that the tick changed
--
-- ARGV[1]  token of the caller
-- ARGV[2]  the caller's token from now on, a UUID made for this tick
-- ARGV[3]  the watermark the caller holds
-- ARGV[4]  time to live of the states in milliseconds
-- ARGV[5..n+4]     the states, in the order of KEYS
-- ARGV[n+5]        m: number of deadlines that change
-- ARGV[n+6..n+5+2m]  deadlines: conversation, milliseconds or ''
-- ARGV[n+6+2m..]   outbox entries: field, record, field, record, ...
--
-- A tick reads no event, so the watermark stays, and cannot tell whether it is in. The token does: each tick changes it. A late copy
-- finds another token than its own. A failover that takes the tick back takes the token back, so that the owner, who goes on under the
-- new one, is FENCED by its next call of any kind and reads again.
--
-- Returns {'ALREADY', wm or ''}              this very tick is in: its reply was lost; nothing written
--         {'FENCED', stored token or ''}     someone else owns the partition; nothing written
--         {'GAP', wm or ''}                  the watermark is not where the caller holds it; nothing written
--         {'OK', wm, entries in the outbox}  written
local token = redis.call('HGET', KEYS[1], 'token') or ''
local stored = redis.call('HGET', KEYS[1], 'wm') or ''
if token == ARGV[2] then
  return {'ALREADY', stored}
end
if token ~= ARGV[1] then
  return {'FENCED', token}
end
if tonumber(stored) ~= tonumber(ARGV[3]) then
  return {'GAP', stored}
end
redis.call('HSET', KEYS[1], 'token', ARGV[2])
local n = #KEYS - 3
for i = 1, n do
  redis.call('SET', KEYS[3 + i], ARGV[4 + i], 'PX', ARGV[4])
end
local m = tonumber(ARGV[n + 5])
for i = n + 6, n + 4 + 2 * m, 2 do
  if ARGV[i + 1] == '' then
    redis.call('ZREM', KEYS[3], ARGV[i])
  else
    redis.call('ZADD', KEYS[3], ARGV[i + 1], ARGV[i])
  end
end
for i = n + 6 + 2 * m, #ARGV, 2 do
  redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
end
return {'OK', stored, redis.call('HLEN', KEYS[2])}
