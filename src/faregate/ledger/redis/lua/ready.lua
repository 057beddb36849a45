-- The counters of these shapes are built. KEYS: state, lock, shapes. ARGV: state, owner of the lock, channel, then
-- shapes, each followed by the era in which it was learned. -> 'ready' | 'lost' | 'stale'
if is_stale() then
  return STALE
end
if call('GET', KEYS[2]) ~= ARGV[2] then
  return {'lost'}
end
for i = 4, #ARGV, 2 do
  call('HSET', KEYS[3], ARGV[i], ARGV[i + 1])
end
call('PUBLISH', ARGV[3], 'standing')
return {'ready'}
