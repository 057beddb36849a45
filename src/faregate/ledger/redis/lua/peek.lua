-- Look at counters without changing anything.
-- KEYS: state. ARGV: state, namespace, now, names. -> 'seen', used and held of each | 'stale'
if is_stale() then
  return STALE
end
local ns, now = ARGV[2], moment(ARGV[3])
local reply = {'seen'}
for i = 4, #ARGV do
  local used, held = balance(ns .. ARGV[i])
  if kind_of(ARGV[i]) == 'm' then
    local _, _, over_used, over_held = outside(ns, ARGV[i], now, -1)
    used, held = used - over_used, held - over_held
  end
  reply[#reply + 1] = used
  reply[#reply + 1] = held
end
return reply
