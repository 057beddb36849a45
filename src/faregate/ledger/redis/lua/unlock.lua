-- KEYS: lock. ARGV: its owner.
if call('GET', KEYS[1]) == ARGV[1] then
  call('DEL', KEYS[1])
end
return 1
