-- The database has these entries of an outbox. That the requests were settled need be known a little longer only: the
-- last repetitions of a call that was thought lost.
-- KEYS: outbox. ARGV: namespace, seconds, number of entries (it may be 0), entries, request ids. -> 'written'
local count = tonumber(ARGV[3])
if count > 0 then
  call('XDEL', KEYS[1], unpack(ARGV, 4, 3 + count))
end
for i = 4 + count, #ARGV do
  call('EXPIRE', ARGV[1] .. 'x:' .. ARGV[i], ARGV[2])
end
return {'written'}
