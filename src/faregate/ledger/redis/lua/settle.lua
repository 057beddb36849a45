-- Replace a hold by its charges and hand the record to the node's outbox, once per request id.
--
-- KEYS: state, the outbox of the node. ARGV: state, namespace, request id, node, era, admitted at, now, record, the era
-- in which it was charged and is refused by the database now, or 0, its entry in the outbox or '', and as one list in
-- MessagePack for each charge: name, when it is gone or '', amount as text, the era in which its shape was learned.
-- -> 'settled' or 'amended', entry in the outbox | 'own', era in which it was, its entry | 'already' | 'stale'
local ns, id, node, era = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local marker = ns .. 'x:' .. id
local stands = call('MGET', KEYS[1], marker)
if stands[1] ~= ARGV[1] then
  return STALE
end
local over, settled_in = stands[2], 0
if over and over ~= 'r' then
  local before, entry, by = string.match(over, SETTLED)
  if by ~= node then
    return {'already'}
  end
  if before ~= ARGV[9] or before == era then
    return {'own', tonumber(before), entry}
  end
  -- Its row did not reach the database in its own era: counters that were learned since started without it.
  settled_in = tonumber(before)
end

local now = moment(ARGV[7])
local amounts, rest = read_hold(ns, id)
local at = tonumber(rest and rest.a or ARGV[6])
amounts = amounts or {}
local charges = cmsgpack.unpack(ARGV[11])
for i = 1, #charges, 4 do
  local name = charges[i]
  if charges[i + 3] > settled_in then
    local held, amount = amounts[name], charges[i + 2]
    amounts[name] = nil
    local since = held and at or tonumber(ARGV[6])
    if not (held and became_used(ns, name, id, amount, since, now)) then
      local is_there = held and give_back(ns, name, id, held)
      charge(ns, name, id, amount, since, now, charges[i + 1], not is_there)
    end
  end
end
-- The row of its former era would be refused, whoever inherited it.
if ARGV[10] ~= '' then
  call('XDEL', KEYS[2], ARGV[10])
end
local entry = call('XADD', KEYS[2], '*', 'r' .. id, ARGV[8])
call('SET', marker, era .. ' ' .. entry .. ' ' .. node)
if settled_in > 0 then
  return {'amended', entry}
end
if rest then
  for name, held in pairs(amounts) do
    give_back(ns, name, id, held)
  end
  drop_hold(ns, id, rest)
end
return {'settled', entry}
