-- What the scripts share. It stands in front of each of them.
--
-- KEYS[1] is the state, "epoch.era": what the caller believes is ARGV[1], and where that is not so it has to look
-- again before it may count. ARGV[2] is the namespace of the epoch. All keys begin with one hash tag, so they are in one
-- slot of a cluster; those below the namespace are computed from the names of counters and requests.
--
-- A counter is the hash `namespace .. name`. The first letter of its name says how it counts: `c` a calendar window,
-- `t` the total, `m` the sliding minute, `s` parallel requests. Fields: `b` what records of earlier eras charged,
-- `u` what was charged since, `h` what is held. A minute has entries: field `e<request id>` is `h<amount>` while
-- held and `u<amount>` when charged, and the sorted set `@name` beside it has when each was admitted.
-- A hold is the hash `h:<request id>`: single letters for what it is, names of counters for what it keeps on them.
-- An outbox is a stream of rows: field `r<request id>` a record, `u<user id>` a person.
-- What is over leaves `x:<request id>`: `r` when it was released, `<era> <entry> <node>` when it was settled: where its
-- row is in the outbox of that node.
-- Moments are microseconds since the epoch of Unix: exact in a double, as all amounts below 2^53 are.

local MINUTE = 60000000
local MINUTE_KEPT = 125000 -- milliseconds

local SETTLED = '^(%d+) (%S+) (.*)$'
local STALE = {'stale'}

local function is_stale()
  return redis.call('GET', KEYS[1]) ~= ARGV[1]
end

-- The server's own clock, but where the caller turns the hands itself.
local function moment(given)
  if given ~= '' then
    return tonumber(given)
  end
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

-- Lua's own conversion keeps 14 digits.
local function text(number)
  return string.format('%.0f', number)
end

local function kind_of(name)
  return string.sub(name, 1, 1)
end

-- How much of what a minute counts is of entries that do not count at `at`, and these entries.
local function outside(ns, name, at)
  local times = ns .. '@' .. name
  local ids = redis.call('ZRANGEBYSCORE', times, '-inf', text(at - MINUTE))
  -- From a clock that was ahead, and was set back since.
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', times, '(' .. text(at + MINUTE), '+inf')) do
    ids[#ids + 1] = id
  end
  local used, held = 0, 0
  for _, id in ipairs(ids) do
    local entry = redis.call('HGET', ns .. name, 'e' .. id)
    if entry then
      local amount = tonumber(string.sub(entry, 2))
      if kind_of(entry) == 'h' then
        held = held + amount
      else
        used = used + amount
      end
    end
  end
  return ids, used, held
end

-- Drop the entries of a minute that no longer count at `at`.
local function forget(ns, name, at)
  local ids, used, held = outside(ns, name, at)
  if #ids == 0 then
    return
  end
  for _, id in ipairs(ids) do
    redis.call('HDEL', ns .. name, 'e' .. id)
    redis.call('ZREM', ns .. '@' .. name, id)
  end
  if used > 0 then
    redis.call('HINCRBY', ns .. name, 'u', -used)
  end
  if held > 0 then
    redis.call('HINCRBY', ns .. name, 'h', -held)
  end
end

-- What is used and held on a counter, and whether it exists.
local function balance(ns, name)
  local fields = redis.call('HMGET', ns .. name, 'b', 'u', 'h')
  local exists = fields[1] or fields[2] or fields[3]
  return (tonumber(fields[1]) or 0) + (tonumber(fields[2]) or 0), tonumber(fields[3]) or 0, exists
end

local function keep_minute(ns, name)
  redis.call('PEXPIRE', ns .. name, MINUTE_KEPT)
  redis.call('PEXPIRE', ns .. '@' .. name, MINUTE_KEPT)
end

-- Hold `amount` of a counter for a request.
local function hold_on(ns, name, id, amount, at, ttl, is_new)
  local key = ns .. name
  if kind_of(name) == 'm' then
    redis.call('ZADD', ns .. '@' .. name, text(at), id)
    redis.call('HSET', key, 'e' .. id, 'h' .. text(amount))
    redis.call('HINCRBY', key, 'h', amount)
    keep_minute(ns, name)
    return
  end
  redis.call('HINCRBY', key, 'h', amount)
  if is_new and ttl ~= '' then
    redis.call('PEXPIRE', key, ttl)
  end
end

-- Give back what a request holds of a counter.
local function give_back(ns, name, id, amount)
  local key = ns .. name
  local kind = kind_of(name)
  if kind == 'm' then
    -- Its minute may be over, and its entry forgotten, before the request is.
    local entry = redis.call('HGET', key, 'e' .. id)
    if not entry or kind_of(entry) ~= 'h' then
      return
    end
    redis.call('HDEL', key, 'e' .. id)
    redis.call('ZREM', ns .. '@' .. name, id)
    amount = tonumber(string.sub(entry, 2))
  end
  if amount == 0 then
    return -- minus nothing is not an integer to Redis
  end
  local left = redis.call('HINCRBY', key, 'h', -amount)
  -- Below nothing: the window was over, and the counter gone, before the request was.
  if left < 0 or (left == 0 and kind == 's') then
    redis.call('DEL', key)
  end
end

-- Charge `amount` to a counter for a request that was admitted at `at`.
local function charge(ns, name, id, amount, at, now, ttl, is_new)
  local key = ns .. name
  local kind = kind_of(name)
  if kind == 's' or amount == 0 then
    return
  end
  if kind == 'm' then
    if at <= now - MINUTE then
      return
    end
    redis.call('ZADD', ns .. '@' .. name, text(at), id)
    redis.call('HSET', key, 'e' .. id, 'u' .. text(amount))
    redis.call('HINCRBY', key, 'u', amount)
    keep_minute(ns, name)
    return
  end
  -- The first charge, too: what was held may have been the last of a counter that was gone.
  local used = redis.call('HINCRBY', key, 'u', amount)
  if (is_new or used == amount) and ttl ~= '' then
    redis.call('PEXPIRE', key, ttl)
  end
end

-- Turn what a request holds of a minute into `amount` that it used, where it stands. False where that cannot be.
local function became_used(ns, name, id, amount, at, now)
  if kind_of(name) ~= 'm' or amount == 0 or at <= now - MINUTE then
    return false
  end
  local key = ns .. name
  local entry = redis.call('HGET', key, 'e' .. id)
  if not entry or kind_of(entry) ~= 'h' then
    return false
  end
  redis.call('HSET', key, 'e' .. id, 'u' .. text(amount))
  redis.call('HINCRBY', key, 'u', amount)
  local held = tonumber(string.sub(entry, 2))
  if held > 0 then
    redis.call('HINCRBY', key, 'h', -held)
  end
  return true
end

-- The amounts that a hold keeps, by counter, and the rest of it by letter. Nothing where there is no such hold.
local function read_hold(ns, id)
  local flat = redis.call('HGETALL', ns .. 'h:' .. id)
  if #flat == 0 then
    return nil, nil
  end
  local amounts, rest = {}, {}
  for i = 1, #flat, 2 do
    if #flat[i] == 1 then
      rest[flat[i]] = flat[i + 1]
    else
      amounts[flat[i]] = tonumber(flat[i + 1])
    end
  end
  return amounts, rest
end

local function drop_hold(ns, id, rest)
  redis.call('DEL', ns .. 'h:' .. id)
  redis.call('ZREM', ns .. 'n:' .. rest.n, id)
end
