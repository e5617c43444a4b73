-- DUE: which conversations of a partition have a timer that falls due by a moment (docs/delivery.md, "Timers").
--
-- KEYS[1]  meta  hash  token, wm (see acquire.lua)
-- KEYS[2]  due   zset  conversation -> event time, in milliseconds, at which a timer falls due; no expiry. Written by APPLY and TICK
--                      together with the state, removed by ERASE. A hint: what is due is decided on the state. An entry may be left over
--                      (a state that has expired, a worker of a version that knows no deadlines); whoever finds nothing due mends it.
--
-- ARGV[1]  token of the caller
-- ARGV[2]  the watermark the caller holds
-- ARGV[3]  the moment, event time in milliseconds
-- ARGV[4]  how many conversations at most
--
-- Fenced like LOAD, so that nobody ticks for a partition that it has lost.
--
-- Returns {'FENCED', stored token or ''}, {'GAP', wm or ''}, or {'OK', {conversation, ...}, the first deadline after the moment or ''}.
local token = redis.call('HGET', KEYS[1], 'token') or ''
if token ~= ARGV[1] then
  return {'FENCED', token}
end
local stored = redis.call('HGET', KEYS[1], 'wm') or ''
if tonumber(stored) ~= tonumber(ARGV[2]) then
  return {'GAP', stored}
end
local later = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. ARGV[3], '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
return {'OK', redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ARGV[3], 'LIMIT', 0, ARGV[4]), later[2] or ''}
