-- Set what counters start from; repeating it changes nothing.
-- KEYS: state, lock. ARGV: state, namespace, owner of the lock, now, then for each: name, when it is gone or '', amount,
-- and for a minute request id and when it was admitted, else '' and ''. -> 'set' | 'lost' | 'stale'
if is_stale() then
  return STALE
end
if call('GET', KEYS[2]) ~= ARGV[3] then
  return {'lost'}
end
local ns, now, minutes = ARGV[2], moment(ARGV[4]), {}
for i = 5, #ARGV, 5 do
  local name, amount, id = ARGV[i], ARGV[i + 2], ARGV[i + 3]
  if kind_of(name) == 'm' then
    if call('HSETNX', ns .. name, 'e' .. id, 'u' .. amount) == 1 then
      call('ZADD', ns .. '@' .. name, ARGV[i + 4], id)
      minutes[name] = (minutes[name] or 0) + amount
    end
  else
    call('HSET', ns .. name, 'b', amount)
    keep_until(ns .. name, ARGV[i + 1], now)
  end
end
for name, amount in pairs(minutes) do
  call('HINCRBY', ns .. name, 'u', text(amount))
  keep_minute(ns, name, MINUTE_KEPT)
end
return {'set'}
