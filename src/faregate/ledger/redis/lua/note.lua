-- The hold learns OpenRouter's id. KEYS: state. ARGV: state, namespace, request id, generation id. -> 'noted' | 'stale'
if is_stale() then
  return STALE
end
local hold = ARGV[2] .. 'h:' .. ARGV[3]
if call('EXISTS', hold) == 1 then
  call('HSET', hold, 'g', ARGV[4])
end
return {'noted'}
