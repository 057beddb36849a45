-- The nodes whose lease runs and that have not joined the epoch. KEYS: state, nodes. ARGV: state, namespace, now.
-- -> 'missing', nodes | 'stale'
if is_stale() then
  return STALE
end
local reply = {'missing'}
for _, node in ipairs(call('ZRANGEBYSCORE', KEYS[2], '(' .. text(moment(ARGV[3])), '+inf')) do
  if call('SISMEMBER', ARGV[2] .. 'joined', node) == 0 then
    reply[#reply + 1] = node
  end
end
return reply
