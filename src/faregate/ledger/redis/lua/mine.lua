-- What a node holds. KEYS: state. ARGV: state, namespace, node, ids of requests.
-- -> 'mine', ids of all that it holds, those of the requests that it holds | 'stale'
if is_stale() then
  return STALE
end
local ns, node = ARGV[2], ARGV[3]
local holds = {}
for i = 4, #ARGV do
  local hold = call('HGETALL', ns .. 'h:' .. ARGV[i])
  if #hold > 0 and call('ZSCORE', ns .. 'n:' .. node, ARGV[i]) then
    holds[#holds + 1] = hold
  end
end
return {'mine', call('ZRANGE', ns .. 'n:' .. node, 0, -1), holds}
