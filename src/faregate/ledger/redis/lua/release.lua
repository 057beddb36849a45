-- Nothing was spent: drop the hold, and leave a tombstone, so that a reserve still under way cannot take hold.
-- KEYS: state. ARGV: state, namespace, request id, seconds that the tombstone stays. -> 'released' | 'stale'
if is_stale() then
  return STALE
end
local ns, id = ARGV[2], ARGV[3]
local amounts, rest = read_hold(ns, id)
if amounts then
  for name, held in pairs(amounts) do
    give_back(ns, name, id, held)
  end
  drop_hold(ns, id, rest)
end
call('SET', ns .. 'x:' .. id, 'r', 'NX', 'EX', ARGV[4])
return {'released'}
