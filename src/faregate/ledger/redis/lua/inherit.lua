-- Move what dead nodes had not written yet to the outbox of an heir; a node that left nothing at all is forgotten.
-- KEYS: state, nodes, grace, outbox of the heir. ARGV: state, namespace, now, heir, most, prefix of outboxes.
-- -> 'inherited', then for each: its entry at the heir's, its field, its row | 'stale'
if is_stale() then
  return STALE
end
local now, heir, most = moment(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local reply = {'inherited'}
if tonumber(call('GET', KEYS[3]) or 0) > now then
  return reply
end
for _, node in ipairs(call('ZRANGEBYSCORE', KEYS[2], '-inf', text(now))) do
  if node ~= heir and most > 0 then
    local outbox = ARGV[6] .. node
    local entries = call('XRANGE', outbox, '-', '+', 'COUNT', most)
    for _, entry in ipairs(entries) do
      local fields = entry[2]
      -- Whoever has the row may charge it again, should counters be built without it.
      local marker = ARGV[2] .. 'x:' .. string.sub(fields[1], 2)
      local own = call('XADD', KEYS[4], '*', fields[1], fields[2])
      local era, _, by = string.match(call('GET', marker) or '', SETTLED)
      if by == node then
        call('SET', marker, era .. ' ' .. own .. ' ' .. heir)
      end
      reply[#reply + 1] = own
      reply[#reply + 1] = fields[1]
      reply[#reply + 1] = fields[2]
      call('XDEL', outbox, entry[1])
    end
    most = most - #entries
    if most > 0 and call('EXISTS', ARGV[2] .. 'n:' .. node) == 0 then
      call('DEL', outbox)
      call('ZREM', KEYS[2], node)
    end
  end
end
return reply
