-- Keep all holds of a node alive. A node that comes late was kept from Redis, and so may others have been: nobody's
-- holds expire until each of them had the time to renew.
-- KEYS: state, nodes, grace. ARGV: state, namespace, node, lease, now, 1 if it comes late, peers and when their leases end.
-- -> 'renewed', now, nodes that are alive and when their leases end | 'stale'
if is_stale() then
  return STALE
end
local lease, now = tonumber(ARGV[4]), moment(ARGV[5])
redis.call('ZADD', KEYS[2], text(now + lease), ARGV[3])
if ARGV[6] == '1' then
  redis.call('SET', KEYS[3], text(now + lease), 'PX', text(lease / 1000))
end
local reply = {'renewed', text(now)}
for _, part in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. text(now), '+inf', 'WITHSCORES')) do
  reply[#reply + 1] = part
end
return reply
