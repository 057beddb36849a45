-- The request is over and its cost is not known: slots go back, the rest stays held.
-- KEYS: state. ARGV: state, namespace, request id. -> 'parked' | 'stale'
if is_stale() then
  return STALE
end
local ns, id = ARGV[2], ARGV[3]
local amounts, rest = read_hold(ns, id)
if amounts and not rest.p then
  for name, held in pairs(amounts) do
    if kind_of(name) == 's' then
      give_back(ns, name, id, held)
      call('HDEL', ns .. 'h:' .. id, name)
    end
  end
  call('HSET', ns .. 'h:' .. id, 'p', '1')
end
return {'parked'}
