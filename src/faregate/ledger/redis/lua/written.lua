-- The database has these entries of an outbox. That the requests were settled need be known a little longer only: the
-- last repetitions of a call that was thought lost.
-- KEYS: outbox. ARGV: namespace, seconds, number of entries, entries, request ids. -> 'written'
local count = tonumber(ARGV[3])
call('XDEL', KEYS[1], unpack(ARGV, 4, 3 + count))
for i = 4 + count, #ARGV do
  call('EXPIRE', ARGV[1] .. 'x:' .. ARGV[i], ARGV[2])
end
return {'written'}
