-- A node has brought its holds into the epoch; it says which others it knew, so that they are waited for.
-- KEYS: state, nodes. ARGV: state, namespace, node, peers, each followed by the end of its lease. -> 'joined' | 'stale'
if is_stale() then
  return STALE
end
for i = 4, #ARGV, 2 do
  call('ZADD', KEYS[2], 'GT', ARGV[i + 1], ARGV[i])
end
call('SADD', ARGV[2] .. 'joined', ARGV[3])
return {'joined'}
