-- Replace a hold by its charges and hand the record to the node's outbox, once per request id.
--
-- KEYS: state, the outbox of the node. ARGV: state, namespace, two lists in MessagePack, and the record. The charges, for
-- each: name, when it is gone or '', number of its amount, the era in which its shape was learned. And what differs from
-- one request to the next: request id, node, era, admitted at, now, the era in which it was charged and is refused by the
-- database now, or 0, its entry in the outbox or '', then amounts as text.
-- -> 'settled' or 'amended', entry in the outbox | 'own', era in which it was, its entry | 'already' | 'stale'
local ns, charges, own = ARGV[2], cmsgpack.unpack(ARGV[3]), cmsgpack.unpack(ARGV[4])
local id, node, era, admitted, refused_in, old_entry = own[1], own[2], own[3], own[4], own[6], own[7]
local BEFORE_AMOUNTS = 7
local marker = ns .. 'x:' .. id
local stands = call('MGET', KEYS[1], marker)
if stands[1] ~= ARGV[1] then
  return STALE
end
local over, settled_in = stands[2], 0
if over and over ~= 'r' then
  local before, entry, by = string.match(over, SETTLED)
  before = tonumber(before)
  if by ~= node then
    return {'already'}
  end
  if before ~= refused_in or before == era then
    return {'own', before, entry}
  end
  -- Its row did not reach the database in its own era: counters that were learned since started without it.
  settled_in = before
end

local now = moment(own[5])
local amounts, rest = read_hold(ns, id)
local at = rest and tonumber(rest.a) or admitted
amounts = amounts or {}
for i = 1, #charges, 4 do
  local name = charges[i]
  if charges[i + 3] > settled_in then
    local held, amount = amounts[name], own[BEFORE_AMOUNTS + charges[i + 2]]
    amounts[name] = nil
    local since = held and at or admitted
    if not (held and became_used(ns, name, id, amount, since, now)) then
      local is_there = held and give_back(ns, name, id, held)
      charge(ns, name, id, amount, since, now, charges[i + 1], not is_there)
    end
  end
end
-- The row of its former era would be refused, whoever inherited it.
if old_entry ~= '' then
  call('XDEL', KEYS[2], old_entry)
end
local entry = call('XADD', KEYS[2], '*', 'r' .. id, ARGV[5])
call('SET', marker, text(era) .. ' ' .. entry .. ' ' .. node)
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
