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
-- Moments are microseconds since the epoch of Unix: exact in a double, as all amounts below 2^53 are. They and amounts are
-- kept as the text that they came in where nothing is to be calculated: to turn a number into text costs more than
-- anything else that a script does on its own. So does each call of a command: what can be had in one is had in one.

local call, sub, format = redis.call, string.sub, string.format

local MINUTE = 60000000
local MINUTE_KEPT = 125000 -- milliseconds
local MINUTE_LEFT = 115000 -- what a minute that was touched has left of them, at least
local SLICE = 200 -- entries that are looked at or forgotten in one command

local SETTLED = '^(%d+) (%S+) (.*)$'
local STALE = {'stale'}

local function is_stale()
  return call('GET', KEYS[1]) ~= ARGV[1]
end

-- The server's own clock, but where the caller turns the hands itself.
local function moment(given)
  if given ~= '' then
    return tonumber(given)
  end
  local time = call('TIME')
  return time[1] * 1000000 + time[2]
end

-- A whole number as text: Lua's own conversion keeps 14 digits.
local function text(number)
  return format('%d', number)
end

local function kind_of(name)
  return sub(name, 1, 1)
end

-- Entries of a minute that do not count at `at`, all or so `many` of each kind, and how much of what it counts they are.
local function outside(ns, name, at, many)
  local times, key = ns .. '@' .. name, ns .. name
  local ids = call('ZRANGEBYSCORE', times, '-inf', text(at - MINUTE), 'LIMIT', 0, many)
  -- From a clock that was ahead, and was set back since.
  for _, id in ipairs(call('ZRANGEBYSCORE', times, '(' .. text(at + MINUTE), '+inf', 'LIMIT', 0, many)) do
    ids[#ids + 1] = id
  end
  local fields, used, held = {}, 0, 0
  for i, id in ipairs(ids) do
    fields[i] = 'e' .. id
  end
  for first = 1, #ids, SLICE do
    local last = math.min(first + SLICE - 1, #ids)
    for _, entry in ipairs(call('HMGET', key, unpack(fields, first, last))) do
      if entry then
        local amount = tonumber(sub(entry, 2))
        if kind_of(entry) == 'h' then
          held = held + amount
        else
          used = used + amount
        end
      end
    end
  end
  return ids, fields, used, held
end

-- Drop entries of a minute that no longer count at `at`: some, as nobody else is served meanwhile. Whether there were any.
local function forget(ns, name, at)
  local ids, fields, used, held = outside(ns, name, at, SLICE)
  if #ids == 0 then
    return false
  end
  call('HDEL', ns .. name, unpack(fields))
  call('ZREM', ns .. '@' .. name, unpack(ids))
  if used > 0 then
    call('HINCRBY', ns .. name, 'u', text(-used))
  end
  if held > 0 then
    call('HINCRBY', ns .. name, 'h', text(-held))
  end
  return true
end

-- What is used and held on a counter, and whether it exists.
local function balance(key)
  local fields = call('HMGET', key, 'b', 'u', 'h')
  local base, used, held = fields[1], fields[2], fields[3]
  return (base and tonumber(base) or 0) + (used and tonumber(used) or 0), held and tonumber(held) or 0,
    base or used or held
end

-- Let a counter go at `gone`, in milliseconds since the epoch of Unix; never where that is ''.
local function keep_until(key, gone, now)
  if gone ~= '' then
    call('PEXPIRE', key, text(math.max(1, gone - math.floor(now / 1000))))
  end
end

local function keep_minute(ns, name, milliseconds)
  call('PEXPIRE', ns .. name, milliseconds)
  call('PEXPIRE', ns .. '@' .. name, milliseconds)
end

-- Add an entry to a minute.
local function enter_minute(ns, name, id, letter, amount, at, is_new)
  local key, times = ns .. name, ns .. '@' .. name
  call('ZADD', times, text(at), id)
  call('HSET', key, 'e' .. id, letter .. amount)
  call('HINCRBY', key, letter, amount)
  -- What is over is forgotten only now and then, and where it is in the way: then by each request until none is left.
  if is_new or call('PTTL', times) < MINUTE_LEFT then
    keep_minute(ns, name, forget(ns, name, at) and MINUTE_LEFT - 1 or MINUTE_KEPT)
  end
end

-- Hold `amount` of a counter for a request.
local function hold_on(ns, name, id, amount, at, now, gone, is_new)
  if kind_of(name) == 'm' then
    enter_minute(ns, name, id, 'h', amount, at, is_new)
    return
  end
  local key = ns .. name
  call('HINCRBY', key, 'h', amount)
  if is_new then
    keep_until(key, gone, now)
  end
end

-- Give back what a request holds of a counter. Whether there was such a counter.
local function give_back(ns, name, id, amount)
  local key = ns .. name
  local kind = kind_of(name)
  if kind == 'm' then
    -- Its minute may be over, and its entry forgotten, before the request is.
    local entry = call('HGET', key, 'e' .. id)
    if not entry or kind_of(entry) ~= 'h' then
      return false
    end
    call('HDEL', key, 'e' .. id)
    call('ZREM', ns .. '@' .. name, id)
    amount = sub(entry, 2)
  end
  if amount == '0' then
    return false -- minus nothing is not an integer to Redis, so there may be none
  end
  local left = call('HINCRBY', key, 'h', '-' .. amount)
  -- Below nothing: the window was over, and the counter gone, before the request was.
  if left < 0 or (left == 0 and kind == 's') then
    call('DEL', key)
    return false
  end
  return true
end

-- Charge `amount` to a counter for a request that was admitted at `at`. `is_new` if the counter may be.
local function charge(ns, name, id, amount, at, now, gone, is_new)
  local kind = kind_of(name)
  if kind == 's' or amount == '0' then
    return
  end
  if kind == 'm' then
    if at > now - MINUTE then
      enter_minute(ns, name, id, 'u', amount, at, is_new)
    end
    return
  end
  local key = ns .. name
  call('HINCRBY', key, 'u', amount)
  if is_new then
    keep_until(key, gone, now)
  end
end

-- Turn what a request holds of a minute into `amount` that it used, where it stands. False where that cannot be.
local function became_used(ns, name, id, amount, at, now)
  if kind_of(name) ~= 'm' or amount == '0' or at <= now - MINUTE then
    return false
  end
  local key, field = ns .. name, 'e' .. id
  local fields = call('HMGET', key, field, 'u', 'h')
  local entry = fields[1]
  if not entry or kind_of(entry) ~= 'h' then
    return false
  end
  local used, held = (tonumber(fields[2]) or 0) + amount, (tonumber(fields[3]) or 0) - sub(entry, 2)
  call('HSET', key, field, 'u' .. amount, 'u', text(used), 'h', text(held))
  return true
end

-- What a hold keeps on counters, and the rest of it by letter: text. Nothing where there is no such hold.
local function read_hold(ns, id)
  local flat = call('HGETALL', ns .. 'h:' .. id)
  if #flat == 0 then
    return nil, nil
  end
  local amounts, rest = {}, {}
  for i = 1, #flat, 2 do
    if #flat[i] == 1 then
      rest[flat[i]] = flat[i + 1]
    else
      amounts[flat[i]] = flat[i + 1]
    end
  end
  return amounts, rest
end

local function drop_hold(ns, id, rest)
  call('DEL', ns .. 'h:' .. id)
  call('ZREM', ns .. 'n:' .. rest.n, id)
end
