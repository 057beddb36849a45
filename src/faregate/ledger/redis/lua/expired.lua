-- The holds whose node stopped renewing, oldest first; with an heir they are its own from now on.
-- KEYS: state, nodes, grace. ARGV: state, namespace, now, most, heir or '', its lease.
-- -> 'expired', then for each hold: request id, when its lease ended, the hold | 'stale'
if is_stale() then
  return STALE
end
local ns, now, most, heir = ARGV[2], moment(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local reply = {'expired'}
if tonumber(call('GET', KEYS[3]) or 0) > now then
  return reply
end
local found = {}
local nodes = call('ZRANGEBYSCORE', KEYS[2], '-inf', text(now), 'WITHSCORES')
for n = 1, #nodes, 2 do
  if nodes[n] ~= heir then
    local renewed = tonumber(nodes[n + 1])
    local ids = call('ZRANGEBYSCORE', ns .. 'n:' .. nodes[n], '-inf', text(now), 'WITHSCORES', 'LIMIT', 0, most)
    for i = 1, #ids, 2 do
      found[#found + 1] = {id = ids[i], node = nodes[n], ended = math.max(renewed, tonumber(ids[i + 1]))}
    end
  end
end
for _, hold in ipairs(found) do
  hold.at = tonumber(call('HGET', ns .. 'h:' .. hold.id, 'a') or 0)
end
table.sort(found, function(one, other)
  if one.ended ~= other.ended then
    return one.ended < other.ended
  end
  return one.at < other.at or (one.at == other.at and one.id < other.id)
end)
for i = 1, math.min(#found, most) do
  local hold = found[i]
  if heir ~= '' then
    hold.ended = now + tonumber(ARGV[6])
    call('ZREM', ns .. 'n:' .. hold.node, hold.id)
    call('ZADD', ns .. 'n:' .. heir, text(hold.ended), hold.id)
    call('ZADD', KEYS[2], 'NX', 0, heir)
    call('HSET', ns .. 'h:' .. hold.id, 'n', heir)
  end
  reply[#reply + 1] = hold.id
  reply[#reply + 1] = text(hold.ended)
  reply[#reply + 1] = call('HGETALL', ns .. 'h:' .. hold.id)
end
return reply
