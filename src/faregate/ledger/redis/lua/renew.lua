-- Keep all holds of a node alive. A node that comes late was kept from Redis, and so may others have been: nobody's
-- holds expire until each of them had the time to renew.
-- A node that is new is told of: the others wait for its holds, should Redis be emptied, once they know it.
-- KEYS: state, nodes, grace. ARGV: state, namespace, node, lease, now, 1 if it comes late, channel.
-- -> 'renewed', now, nodes that are alive and when their leases end | 'stale'
if is_stale() then
  return STALE
end
local lease, now = tonumber(ARGV[4]), moment(ARGV[5])
if tonumber(call('ZSCORE', KEYS[2], ARGV[3]) or 0) <= now then
  call('PUBLISH', ARGV[7], 'node')
end
call('ZADD', KEYS[2], text(now + lease), ARGV[3])
if ARGV[6] == '1' then
  call('SET', KEYS[3], text(now + lease), 'PX', text(math.floor(lease / 1000)))
end
local reply = {'renewed', text(now)}
for _, part in ipairs(call('ZRANGEBYSCORE', KEYS[2], '(' .. text(now), '+inf', 'WITHSCORES')) do
  reply[#reply + 1] = part
end
return reply
