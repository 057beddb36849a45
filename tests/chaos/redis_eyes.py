"""What a test sees in Redis, past Faregate: every counter at one instant, live holds, and what dead nodes left."""

import threading
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, NamedTuple

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis_server import RedisServer

from faregate.ledger.port import Counter
from faregate.ledger.redis.names import Keys, counter_of

EVERY = 0.02
KEYS = Keys("faregate")

# -> name, used + held, held of each counter of the epoch. Of a sliding minute what was admitted within it, entry by
# entry: its own sums keep what is over until somebody asks.
_COUNTERS = """
local epoch = string.match(redis.call('GET', ARGV[1] .. 'state') or '', '^%d+')
local reply = {}
if not epoch then
  return reply
end
local ns = ARGV[1] .. epoch .. ':'
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
for _, key in ipairs(redis.call('KEYS', ns .. '[cmst][[]*')) do
  local name = string.sub(key, #ns + 1)
  local fields = redis.call('HMGET', key, 'b', 'u', 'h')
  local total = (tonumber(fields[1]) or 0) + (tonumber(fields[2]) or 0) + (tonumber(fields[3]) or 0)
  if string.sub(name, 1, 1) == 'm' then
    total = 0
    local since = string.format('(%.0f', now - 60000000)
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', ns .. '@' .. name, since, '+inf')) do
      total = total + tonumber(string.sub(redis.call('HGET', key, 'e' .. id) or 'u0', 2))
    end
  end
  reply[#reply + 1] = {name, string.format('%.0f', total), fields[3] or '0'}
end
return reply
"""

# -> for each node that left a trace: its name, how many holds it has, how many rows are in its outbox.
_NODES = """
local epoch = string.match(redis.call('GET', ARGV[1] .. 'state') or '', '^%d+')
local reply, seen = {}, {}
local function add(node)
  if not seen[node] then
    seen[node] = true
    local holds = epoch and redis.call('ZCARD', ARGV[1] .. epoch .. ':n:' .. node) or 0
    reply[#reply + 1] = {node, holds, redis.call('XLEN', ARGV[1] .. 'outbox:' .. node)}
  end
end
for _, prefix in ipairs({ARGV[1] .. 'outbox:', ARGV[1] .. (epoch or '0') .. ':n:'}) do
  for _, key in ipairs(redis.call('KEYS', prefix .. '*')) do
    add(string.sub(key, #prefix + 1))
  end
end
return reply
"""


def clock() -> str:
    """The time of day, to be compared with logs."""
    return f"{datetime.now().astimezone():%H:%M:%S.%f}"[:-3]


class Sight(NamedTuple):
    """One counter at one instant. `total` is used + held."""

    counter: Counter
    total: int
    held: int


class Trace(NamedTuple):
    """What a node has in Redis."""

    node: str
    holds: int
    rows: int


class Eyes:
    """Looks into one Redis, in one step each time. Raises `redis.ConnectionError` or `redis.TimeoutError`."""

    def __init__(self, server: RedisServer) -> None:
        self._client = server.client(decode_responses=False, socket_timeout=10, retry=Retry(NoBackoff(), 0))

    def close(self) -> None:
        self._client.close()

    def counters(self) -> list[Sight]:
        found: Any = self._client.eval(_COUNTERS, 0, KEYS.tag)
        return [Sight(counter_of(name), int(total), int(held)) for name, total, held in found]

    def traces(self) -> list[Trace]:
        found: Any = self._client.eval(_NODES, 0, KEYS.tag)
        return [Trace(node.decode(), holds, rows) for node, holds, rows in found]

    def live_holds(self) -> list[bytes]:
        return list(self._client.scan_iter(KEYS.tag + b"*:h:*", count=1000))

    def joined(self) -> set[str]:
        """The nodes whose holds are in the counters that there are; none while these are being built."""
        state, shapes = self._client.get(KEYS.state), self._client.hvals(KEYS.shapes)
        if state is None or any(era.endswith(b"+") for era in shapes):
            return set()
        return {
            node.decode() for node in self._client.smembers(KEYS.namespace(int(state.partition(b".")[0])) + b"joined")
        }


class Sampler(threading.Thread):
    """Looks at all counters again and again, and keeps what it should never see."""

    def __init__(self, server: RedisServer, limit_of: Callable[[Counter], int | None]) -> None:
        super().__init__()
        self.samples = 0
        self.tightest: dict[str, float] = {}
        """By kind of counter, the largest share of a limit that was used and held."""
        self.broken: list[str] = []
        """What was over its limit, and when."""
        self.failure: BaseException | None = None
        self._server = server
        self._limit_of = limit_of
        self._stopping = threading.Event()

    def stop(self) -> None:
        self._stopping.set()
        self.join()
        assert self.failure is None, repr(self.failure)

    def run(self) -> None:
        eyes = Eyes(self._server)
        try:
            while not self._stopping.wait(EVERY):
                try:
                    seen = eyes.counters()
                except (redis.ConnectionError, redis.TimeoutError):
                    continue  # It is being restarted, or is stopped.
                self._judge(seen)
        except redis.RedisError as error:
            self.failure = error
        finally:
            eyes.close()

    def _judge(self, seen: Iterable[Sight]) -> None:
        self.samples += 1
        for counter, total, held in seen:
            limit = self._limit_of(counter)
            if limit is None:
                continue
            kind = f"{counter.meter} {counter.window or 'at once'} {counter.scope}"
            self.tightest[kind] = max(self.tightest.get(kind, 0.0), total / limit)
            if total > limit and len(self.broken) < 100:
                at = clock()
                self.broken.append(f"{at} {kind} {counter.scope_id}: {total - held} used + {held} held > {limit}")
