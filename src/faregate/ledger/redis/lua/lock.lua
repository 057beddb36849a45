-- Take the lock, or have it already: the reply to an earlier try may have been lost.
-- KEYS: lock. ARGV: its owner, seconds that it lasts. -> 1, or 0 if somebody else has it
local owner = call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then
  return 0
end
call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
