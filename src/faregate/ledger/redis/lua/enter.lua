-- Take on a hold that was admitted before: after the counters were lost, its owner brings it back.
-- KEYS: state, nodes. ARGV: state, namespace, request id, node, lease, at, now, letters of the hold and their values
-- as one list of `count` parts, then for each counter: name, when it is gone or '', amount.
-- -> 'entered' | 'known' | 'stale'
if is_stale() then
  return STALE
end
local ns, id, node = ARGV[2], ARGV[3], ARGV[4]
if call('EXISTS', ns .. 'h:' .. id, ns .. 'x:' .. id) > 0 then
  return {'known'}
end
local at, now, count = tonumber(ARGV[6]), moment(ARGV[7]), tonumber(ARGV[8])
local hold = {'n', node, 'a', ARGV[6]}
for i = 9, 8 + count do
  hold[#hold + 1] = ARGV[i]
end
for i = 9 + count, #ARGV, 3 do
  local name, amount = ARGV[i], ARGV[i + 2]
  if kind_of(name) ~= 'm' or at > now - MINUTE then
    local _, _, exists = balance(ns .. name)
    hold_on(ns, name, id, amount, at, now, ARGV[i + 1], not exists)
  end
  hold[#hold + 1] = name
  hold[#hold + 1] = amount
end
call('HSET', ns .. 'h:' .. id, unpack(hold))
call('ZADD', ns .. 'n:' .. node, text(now + tonumber(ARGV[5])), id)
call('ZADD', KEYS[2], 'NX', 0, node)
return {'entered'}
