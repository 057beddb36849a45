-- Begin a new epoch with an empty namespace. Its counters are built afterwards; until then nobody is admitted on them.
-- KEYS: state, server, shapes, lock. ARGV: owner of the lock, era, run id of the server, channel, shapes.
-- -> 1, or 0 if somebody else has the lock now
if call('GET', KEYS[4]) ~= ARGV[1] then
  return 0
end
call('SET', KEYS[1], ARGV[2] .. '.' .. ARGV[2])
call('SET', KEYS[2], ARGV[3])
call('DEL', KEYS[3])
for i = 5, #ARGV do
  call('HSET', KEYS[3], ARGV[i], ARGV[2] .. '+')
end
call('PUBLISH', ARGV[4], 'standing')
return 1
