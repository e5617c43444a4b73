-- LOAD: read states under the caller's token, at the caller's watermark (docs/delivery.md, step 3).
--
-- KEYS[1]  meta  hash    token, wm (see acquire.lua)
-- KEYS[2..]      string  states
--
-- ARGV[1]  token of the caller
-- ARGV[2]  the watermark the caller holds
--
-- Fenced, although it only reads: a state read after the partition has passed to another owner holds that owner's events. Should
-- Redis then lose the other's writes, token and watermark would be the caller's again, and those events would be folded in twice.
-- The watermark is compared for the same reason: after a failover Redis may show an older state, and a late copy of the caller's own
-- APPLY may bring the watermark back to where the caller believes it to be.
--
-- Returns {'FENCED', stored token or ''}, {'GAP', wm or ''}, or {'OK', {state or nil, ...}} in the order of KEYS.
local token = redis.call('HGET', KEYS[1], 'token') or ''
if token ~= ARGV[1] then
  return {'FENCED', token}
end
local stored = redis.call('HGET', KEYS[1], 'wm') or ''
if tonumber(stored) ~= tonumber(ARGV[2]) then
  return {'GAP', stored}
end
local states = {}
for i = 2, #KEYS do
  states[i - 1] = redis.call('GET', KEYS[i])
end
return {'OK', states}
