-- ERASE: forget conversations while a worker owns their partition (docs/delivery.md, "Erasure").
--
-- KEYS[1]  meta    hash    token, wm (see acquire.lua)
-- KEYS[2]  outbox  hash    <offset>:<sequence> -> encoded record
-- KEYS[3]  due     zset    deadlines (see due.lua)
-- KEYS[4..n+3]     string  states of the n conversations
--
-- ARGV[1]  the eraser's own token, a UUID
-- ARGV[2..n+1]  the states that the eraser has read, in the order of KEYS
-- ARGV[n+2..2n+1]  the conversations, as the members of the zset name them
-- ARGV[2n+2..]  records that tell consumers of the erasure; they go into the outbox as <wm>:e:<token>:<i>
--
-- The owner holds the states in its cache and would write them back. So the eraser takes the token from it: its next APPLY is FENCED,
-- it acquires again, re-reads states and outbox, redoes its batch on what is left, and publishes the eraser's records.
--
-- Returns {'CHANGED', i}   the state of the i-th conversation (from 1) is not what the eraser read; nothing written
--         {'OK', number of states removed}
local n = #KEYS - 3
local wm = redis.call('HGET', KEYS[1], 'wm') or '0'
if redis.call('HGET', KEYS[1], 'token') == ARGV[1] then
  return {'OK', 0}
end
for i = 1, n do
  if redis.call('GET', KEYS[3 + i]) ~= ARGV[1 + i] then
    return {'CHANGED', i}
  end
end
redis.call('HSET', KEYS[1], 'token', ARGV[1], 'member', 'erasure')
local removed = 0
for i = 1, n do
  removed = removed + redis.call('DEL', KEYS[3 + i])
  redis.call('ZREM', KEYS[3], ARGV[n + 1 + i])
end
for i = 2 * n + 2, #ARGV do
  redis.call('HSET', KEYS[2], wm .. ':e:' .. ARGV[1] .. ':' .. (i - 2 * n - 2), ARGV[i])
end
return {'OK', removed}
