-- Hold every claim with the largest output cap that fits, or nothing: design, section 4; `ledger/fitting.py` is the
-- same rule for one process.
--
-- KEYS: state, nodes. ARGV: state, namespace, two lists in MessagePack, which cost less than arguments, and the facts. The
-- claims, for each: name, when it is gone or '', number of its amounts, limit or false, whether it is enforced. And what
-- differs from one request to the next: request id, node, lease, at, now, cap wanted, least cap, then amounts: fixed as
-- text, per output token.
-- -> 'held', cap, names of exceeded counters | 'refused', number of the claim, used, held, needed, when it frees or ''
--    | 'over' | 'stale'
if is_stale() then
  return STALE
end
local ns, claims, own = ARGV[2], cmsgpack.unpack(ARGV[3]), cmsgpack.unpack(ARGV[4])
local id, node, lease, wanted, least = own[1], own[2], own[3], own[6], own[7]
local FIRST = 8 -- of the amounts
local hold_key, marker, own_holds = ns .. 'h:' .. id, ns .. 'x:' .. id, ns .. 'n:' .. node
-- A key that is named twice counts twice: so one command tells what there is of this request, 2 and more, and 1 whether
-- this node holds anything at all.
local there = call('EXISTS', hold_key, hold_key, marker, marker, own_holds)
if there > 1 then
  local live = call('HMGET', hold_key, 'c', 'x')
  if live[1] then
    return {'held', tonumber(live[1]), live[2] or ''}
  end
  return {'over'}
end
local now = moment(own[5])
local at = own[4] == '' and now or tonumber(own[4])
local cap = wanted
local fixed, per, most = {}, {}, {}
for i = FIRST, #own, 2 do
  local n = #fixed + 1
  fixed[n], per[n] = tonumber(own[i]), own[i + 1]
  most[n] = fixed[n] + wanted * per[n]
end

-- When a sliding minute is down to `room`, if nothing else is admitted.
local function frees_at(name, left, room)
  if kind_of(name) ~= 'm' then
    return ''
  end
  local from = 0
  while true do
    local entries = call('ZRANGE', ns .. '@' .. name, from, from + 99, 'WITHSCORES')
    for i = 1, #entries, 2 do
      local entry = call('HGET', ns .. name, 'e' .. entries[i])
      left = left - (entry and tonumber(sub(entry, 2)) or 0)
      if left <= room then
        return text(tonumber(entries[i + 1]) + MINUTE)
      end
    end
    if #entries < 200 then
      return ''
    end
    from = from + 100
  end
end

local exist, rooms = {}, {}
for i = 1, #claims, 5 do
  local name, n, limit = claims[i], claims[i + 2], claims[i + 3]
  local key = ns .. name
  local used, held, exists = balance(key)
  exist[i] = exists
  if limit and used + held + most[n] > limit then
    if kind_of(name) == 'm' then
      while used + held + most[n] > limit and forget(ns, name, at) do
        used, held = balance(key)
      end
    end
    local room = limit - used - held
    if not claims[i + 4] then
      rooms[i] = room
    else
      local needed = fixed[n] + least * per[n]
      if needed > room then
        return {'refused', (i - 1) / 5, used, held, needed, frees_at(name, used + held, limit - needed)}
      end
      if most[n] > room then
        cap = math.min(cap, math.max(least, math.floor((math.floor(room / 2) - fixed[n]) / per[n])))
      end
    end
  end
end

local amounts = {}
for n = 1, #fixed do
  amounts[n] = per[n] > 0 and text(fixed[n] + cap * per[n]) or own[FIRST + 2 * n - 2]
end
local exceeded, taken = {}, {}
local hold = {'f', ARGV[5], 'n', node, 'c', text(cap), 'a', text(at)}
local last = #hold
for i = 1, #claims, 5 do
  local name, amount = claims[i], amounts[claims[i + 2]]
  if rooms[i] and tonumber(amount) > rooms[i] then
    exceeded[#exceeded + 1] = name
  end
  -- Several limits may be about one counter: it is held once.
  if not taken[name] then
    taken[name] = true
    hold_on(ns, name, id, amount, at, now, claims[i + 1], not exist[i])
    hold[last + 1], hold[last + 2] = name, amount
    last = last + 2
  end
end
local broken = table.concat(exceeded, '\n')
if broken ~= '' then
  hold[last + 1], hold[last + 2] = 'x', broken
end
call('HSET', hold_key, unpack(hold))
call('ZADD', own_holds, text(now + lease), id)
-- A node that never renews still is one that can die. It is not forgotten while it holds anything.
if there == 0 then
  call('ZADD', KEYS[2], 'NX', '0', node)
end
return {'held', cap, broken}
