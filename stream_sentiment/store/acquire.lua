-- ACQUIRE: make the caller the one owner of a partition, and hand over what the last owner left (docs/delivery.md, step 1).
--
-- KEYS[1]  meta    hash  token       the owner's token, a UUID; every other script compares it
--                        wm          watermark: the next input offset to apply; absent before the first start
--                        member, at  who took it, and when (milliseconds since the epoch, the owner's clock): for people
--                        settled     positions in the output topics, with output.exactly_once (settle.lua)
--                        clock       "<event time>:<broker time>" in milliseconds: the newest event time of the input applied, and when
--                                    the broker took the last event of it; what the next owner's timers go on from
--                        partitions  number of partitions of the topic when this one was first acquired
-- KEYS[2]  outbox  hash  <offset>:<sequence> -> encoded record; applied, not yet known to be delivered
--
-- ARGV[1]  token; a call that is sent again carries another one. Redis may execute the first sending long after the second, and would
--          give the partition back to an owner that has lost it since, with a cache that is no longer true.
-- ARGV[2]  member
-- ARGV[3]  at
-- ARGV[4]  number of partitions of the topic now, or '' where it is not known
-- ARGV[5]  '1': record ARGV[4] even where another number is recorded (the operator said so)
--
-- Returns {wm or '', recorded partitions or '', previous token or '', {field, record, field, record, ...}, settled or '',
--          token, clock or ''}.
-- Numbers leave as the strings that are stored: Lua would print 14 digits of them.
local previous = redis.call('HGET', KEYS[1], 'token') or ''
redis.call('HSET', KEYS[1], 'token', ARGV[1], 'member', ARGV[2], 'at', ARGV[3])
if ARGV[4] ~= '' then
  if ARGV[5] == '1' then
    redis.call('HSET', KEYS[1], 'partitions', ARGV[4])
  else
    redis.call('HSETNX', KEYS[1], 'partitions', ARGV[4])
  end
end
return {
  redis.call('HGET', KEYS[1], 'wm') or '',
  redis.call('HGET', KEYS[1], 'partitions') or '',
  previous,
  redis.call('HGETALL', KEYS[2]),
  redis.call('HGET', KEYS[1], 'settled') or '',
  ARGV[1],
  redis.call('HGET', KEYS[1], 'clock') or '',
}
