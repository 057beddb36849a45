-- Hold every claim with the largest output cap that fits, or nothing: design, section 4; `ledger/fitting.py` is the
-- same rule for one process.
--
-- KEYS: state, nodes. ARGV: state, namespace, request id, node, facts, and as one list in MessagePack, which costs less
-- than arguments: lease, at, now, cap wanted, least cap, then for each claim: name, when it is gone or '', fixed as text,
-- per output token, limit or false, whether it is enforced.
-- -> 'held', cap, names of exceeded counters | 'refused', number of the claim, used, held, needed, when it frees or ''
--    | 'over' | 'stale'
if is_stale() then
  return STALE
end
local ns, id, node = ARGV[2], ARGV[3], ARGV[4]
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
local claims = cmsgpack.unpack(ARGV[6])
local lease, wanted, least = claims[1], claims[4], claims[5]
local now = moment(claims[3])
local at = claims[2] == '' and now or tonumber(claims[2])
local cap = wanted
local FIRST = 6 -- of the claims

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
for i = FIRST, #claims, 6 do
  local name = claims[i]
  local key = ns .. name
  local used, held, exists = balance(key)
  exist[i] = exists
  local limit = claims[i + 4]
  if limit then
    local fixed, per = tonumber(claims[i + 2]), claims[i + 3]
    if used + held + fixed + wanted * per > limit then
      if kind_of(name) == 'm' then
        while used + held + fixed + wanted * per > limit and forget(ns, name, at) do
          used, held = balance(key)
        end
      end
      local room = limit - used - held
      if not claims[i + 5] then
        rooms[i] = room
      else
        local needed = fixed + least * per
        if needed > room then
          return {'refused', (i - FIRST) / 6, used, held, needed, frees_at(name, used + held, limit - needed)}
        end
        if fixed + wanted * per > room then
          cap = math.min(cap, math.max(least, math.floor((math.floor(room / 2) - fixed) / per)))
        end
      end
    end
  end
end

local exceeded, taken = {}, {}
local hold = {'f', ARGV[5], 'n', node, 'c', text(cap), 'a', text(at)}
local last = #hold
for i = FIRST, #claims, 6 do
  local name, amount, per = claims[i], claims[i + 2], claims[i + 3]
  if per > 0 then
    amount = text(amount + cap * per)
  end
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
