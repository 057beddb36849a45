-- Begin a new era in the same epoch, with further shapes, whose counters are built afterwards.
-- KEYS: state, shapes, lock. ARGV: owner of the lock, epoch, era, channel, shapes. -> 1, or 0 if that cannot be now
if call('GET', KEYS[3]) ~= ARGV[1] or string.match(call('GET', KEYS[1]) or '', '^%d+') ~= ARGV[2] then
  return 0
end
call('SET', KEYS[1], ARGV[2] .. '.' .. ARGV[3])
for i = 5, #ARGV do
  call('HSETNX', KEYS[2], ARGV[i], ARGV[3] .. '+')
end
call('PUBLISH', ARGV[4], 'standing')
return 1
