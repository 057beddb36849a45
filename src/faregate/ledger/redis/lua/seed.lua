-- Set what counters start from; repeating it changes nothing.
-- KEYS: state, lock. ARGV: state, namespace, owner of the lock, then for each: name, time to live in ms or '', amount,
-- and for a minute request id and when it was admitted, else '' and ''. -> 'set' | 'lost' | 'stale'
if is_stale() then
  return STALE
end
if redis.call('GET', KEYS[2]) ~= ARGV[3] then
  return {'lost'}
end
local ns = ARGV[2]
for i = 4, #ARGV, 5 do
  local name, ttl, amount, id = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  if kind_of(name) == 'm' then
    if redis.call('HEXISTS', ns .. name, 'e' .. id) == 0 then
      redis.call('ZADD', ns .. '@' .. name, ARGV[i + 4], id)
      redis.call('HSET', ns .. name, 'e' .. id, 'u' .. amount)
      redis.call('HINCRBY', ns .. name, 'u', amount)
      keep_minute(ns, name)
    end
  else
    redis.call('HSET', ns .. name, 'b', amount)
    if ttl ~= '' then
      redis.call('PEXPIRE', ns .. name, ttl)
    end
  end
end
return {'set'}
