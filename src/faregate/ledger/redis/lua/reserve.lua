-- Hold every claim with the largest output cap that fits, or nothing: design, section 4; `ledger/fitting.py` is the
-- same rule for one process.
--
-- KEYS: state, nodes. ARGV: state, namespace, request id, node, lease, at, now, cap wanted, least cap, facts, then for
-- each claim: name, time to live in ms or '', fixed, per output token, limit or '', 1 if it is enforced.
-- -> 'held', cap, names of exceeded counters | 'refused', number of the claim, used, held, needed, when it frees or ''
--    | 'over' | 'stale'
if is_stale() then
  return STALE
end
local ns, id, node = ARGV[2], ARGV[3], ARGV[4]
if redis.call('EXISTS', ns .. 'h:' .. id, ns .. 'x:' .. id) > 0 then
  local live = redis.call('HMGET', ns .. 'h:' .. id, 'c', 'x')
  if live[1] then
    return {'held', tonumber(live[1]), live[2] or ''}
  end
  return {'over'}
end
local now = moment(ARGV[7])
local at = ARGV[6] == '' and now or tonumber(ARGV[6])
local cap, least = tonumber(ARGV[8]), tonumber(ARGV[9])

local claims = {}
for i = 11, #ARGV, 6 do
  local name = ARGV[i]
  if kind_of(name) == 'm' then
    forget(ns, name, at)
  end
  local used, held, exists = balance(ns, name)
  claims[#claims + 1] = {
    name = name, ttl = ARGV[i + 1], fixed = tonumber(ARGV[i + 2]), per = tonumber(ARGV[i + 3]),
    limit = tonumber(ARGV[i + 4]), enforce = ARGV[i + 5] == '1', used = used, held = held, exists = exists,
  }
end

-- When a sliding minute is down to `room`, if nothing else is admitted.
local function frees_at(claim, needed)
  if kind_of(claim.name) ~= 'm' then
    return ''
  end
  local left, room, from = claim.used + claim.held, claim.limit - needed, 0
  while true do
    local entries = redis.call('ZRANGE', ns .. '@' .. claim.name, from, from + 99, 'WITHSCORES')
    for i = 1, #entries, 2 do
      local entry = redis.call('HGET', ns .. claim.name, 'e' .. entries[i])
      left = left - (entry and tonumber(string.sub(entry, 2)) or 0)
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

for number, claim in ipairs(claims) do
  if claim.limit and claim.enforce then
    local needed = claim.fixed + least * claim.per
    if claim.used + claim.held + needed > claim.limit then
      return {'refused', number - 1, claim.used, claim.held, needed, frees_at(claim, needed)}
    end
  end
end

local wanted = cap
for _, claim in ipairs(claims) do
  if claim.limit and claim.enforce then
    local left = claim.limit - claim.used - claim.held
    if claim.fixed + wanted * claim.per > left then
      local half = math.floor(left / 2)
      cap = math.min(cap, math.max(least, math.floor((half - claim.fixed) / claim.per)))
    end
  end
end

local exceeded = {}
local hold = {'f', ARGV[10], 'n', node, 'c', text(cap), 'a', text(at)}
local taken = {}
for _, claim in ipairs(claims) do
  local amount = claim.fixed + cap * claim.per
  if claim.limit and claim.used + claim.held + amount > claim.limit then
    exceeded[#exceeded + 1] = claim.name
  end
  -- Several limits may be about one counter: it is held once.
  if not taken[claim.name] then
    taken[claim.name] = true
    hold_on(ns, claim.name, id, amount, at, claim.ttl, not claim.exists)
    hold[#hold + 1] = claim.name
    hold[#hold + 1] = text(amount)
  end
end
local broken = table.concat(exceeded, '\n')
if #exceeded > 0 then
  hold[#hold + 1] = 'x'
  hold[#hold + 1] = broken
end
redis.call('HSET', ns .. 'h:' .. id, unpack(hold))
redis.call('ZADD', ns .. 'n:' .. node, text(now + tonumber(ARGV[5])), id)
-- A node that never renews still is one that can die.
redis.call('ZADD', KEYS[2], 'NX', 0, node)
return {'held', cap, broken}
