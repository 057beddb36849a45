-- Replace a hold by its charges and hand the record to the node's outbox, once per request id.
--
-- KEYS: state, the outbox of the node. ARGV: state, namespace, request id, node, era, admitted at, now, record, the era
-- in which it was charged and is refused by the database now, or 0, its entry in the outbox or '', then for each charge:
-- name, time to live in ms or '', amount, the era in which its shape was learned.
-- -> 'settled' or 'amended', entry in the outbox | 'own', era in which it was, its entry | 'already' | 'stale'
if is_stale() then
  return STALE
end
local ns, id, node, era = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local at, now = tonumber(ARGV[6]), moment(ARGV[7])
local over = redis.call('GET', ns .. 'x:' .. id)
local settled_in = 0
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

local amounts, rest = read_hold(ns, id)
amounts = amounts or {}
for i = 11, #ARGV, 4 do
  local name, since = ARGV[i], tonumber(ARGV[i + 3])
  if since > settled_in then
    local held, amount = amounts[name], tonumber(ARGV[i + 2])
    amounts[name] = nil
    local since_when = held and tonumber(rest.a) or at
    if not (held and became_used(ns, name, id, amount, since_when, now)) then
      if held then
        give_back(ns, name, id, held)
      end
      charge(ns, name, id, amount, since_when, now, ARGV[i + 1], not held)
    end
  end
end
-- The row of its former era would be refused, whoever inherited it.
if ARGV[10] ~= '' then
  redis.call('XDEL', KEYS[2], ARGV[10])
end
local entry = redis.call('XADD', KEYS[2], '*', 'r' .. id, ARGV[8])
redis.call('SET', ns .. 'x:' .. id, era .. ' ' .. entry .. ' ' .. node)
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
