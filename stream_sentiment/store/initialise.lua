-- INITIALISE: set the watermark where none is stored, or where the operator's policy moves it (docs/delivery.md, "First start").
--
-- KEYS[1]  meta  hash  token, wm (see acquire.lua)
--
-- ARGV[1]  token of the caller
-- ARGV[2]  the offset to start from
-- ARGV[3]  the stored watermark that may be replaced (the topic was created anew), or '': none. Compared, so that a late copy of
--          this call cannot move a watermark that has advanced since.
--
-- Returns {'FENCED', stored token or ''} or {'OK', stored watermark}.
local token = redis.call('HGET', KEYS[1], 'token') or ''
if token ~= ARGV[1] then
  return {'FENCED', token}
end
local stored = redis.call('HGET', KEYS[1], 'wm')
if not stored or stored == ARGV[3] then
  redis.call('HSET', KEYS[1], 'wm', ARGV[2])
end
return {'OK', redis.call('HGET', KEYS[1], 'wm')}
