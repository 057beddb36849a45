"""A gateway over a real Redis and a real PostgreSQL, and all that can be seen of what it keeps."""

import asyncio
import json
import os
import random
import re
import signal
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple, Self
from urllib.parse import urlsplit

import httpx
from books import until
from commands import Gateway, Simulator
from fleet import defaults, running
from open_webui import somebody
from postgres import Postgres
from redis_server import RedisServer
from visits import SPENT_MODEL, Kind, go, plan

AT_ONCE = 32
LIMITS = [
    {"meter": "usd", "window": "month", "amount": "1000000"},
    {"meter": "tokens", "window": "day", "amount": 10**12, "scope": "everyone"},
    {"meter": "requests", "window": "total", "amount": 10**9},
    {"meter": "concurrent", "amount": 10_000},
    {"meter": "requests", "window": "day", "amount": 0, "models": [SPENT_MODEL]},
]
WORK_LEFT = re.compile(
    r"^faregate_(?P<what>holds|settlements_waiting|outbox_waiting)\{.*\} (?P<number>[\d.]+)$", re.MULTILINE
)


class Rest(NamedTuple):
    """What a gateway has when nobody is there: bytes of memory, open files by what they are."""

    resident: int
    files: Counter[str]


class Kept(NamedTuple):
    """What is in a gateway's memory: blocks of Python's allocator, objects by their types, garbage until just now."""

    blocks: int
    kinds: Counter[str]
    garbage: int


class Books(NamedTuple):
    """All requests so far: how many, and for how many dollars."""

    requests: int
    dollars: Decimal


class SoakWorld:
    """Use it in a `with`: whatever happens, no process of it is left."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self._folder = folder
        self._chance = chance
        self._ends = ExitStack()
        self._people = [somebody("students", f"year-{number % 3}") for number in range(20)]
        self._requests = 0
        self._billed = Decimal(0)
        self.most_at_once = 0
        """The most requests that upstream has ever had at the same time."""

    def __enter__(self) -> Self:
        ends = self._ends
        with ExitStack() as failing:
            failing.push(ends)
            self._postgres = ends.enter_context(running(Postgres()))
            self._redis = ends.enter_context(running(RedisServer()))
            self._simulator = Simulator(self._folder, "--generation-delay", "0.05")
            ends.callback(self._simulator.stop)
            self._database = self._postgres.create_database()
            self._told = self._folder / "told.json"
            self.gateway = Gateway.start(self._folder, defaults(self._simulator) | self._settings())
            ends.callback(self.gateway.process.end)
            self.gateway.set_policy(limits=LIMITS, max_output_tokens=500)
            failing.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def visit(self, kinds: Iterable[Kind]) -> None:
        """Make these visits, until the gateway has done all that is to be done about them."""
        steps = plan(kinds, self._people, self._chance)
        asyncio.run(go(self.gateway.process.port, steps, AT_ONCE))
        until(lambda: self._simulator.stats()["in_flight"] == 0)
        self.most_at_once = max(self.most_at_once, self._simulator.stats()["max_in_flight"])
        until(lambda: not any(self._work_left()))
        until(lambda: self._sql("SELECT count(*) FROM usage_records WHERE status = 'pending'") == ("0",))
        until(lambda: not any(self._work_left()))
        until(lambda: not self._files()["client"])

    def rest(self) -> Rest:
        """What it has now."""
        status = Path(f"/proc/{self.gateway.process.pid}/status").read_text()
        return Rest(1024 * int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]), self._files())

    def kept(self) -> Kept:
        """What is in its memory now."""
        self._told.unlink(missing_ok=True)
        os.kill(self.gateway.process.pid, signal.SIGUSR2)
        until(self._told.exists)
        told = json.loads(self._told.read_text())
        return Kept(told["blocks"], Counter(told["kinds"]), told["garbage"])

    def billed(self) -> Books:
        """What came upstream, and what that costs. Upstream forgets it now, so that it does not grow itself."""
        self._requests += self._simulator.stats()["requests"]
        self._billed += sum(Decimal(str(bill["total"])) for bill in self._simulator.bills())
        self._simulator.reset()
        return Books(self._requests, self._billed)

    def recorded(self) -> Books:
        """What the database has of what came upstream."""
        count, cost = self._sql("SELECT count(*), coalesce(sum(cost), 0) FROM usage_records WHERE status <> 'refused'")
        return Books(int(count), Decimal(cost))

    def holds(self) -> list[bytes]:
        """The holds that are left in Redis."""
        with self._redis.client(decode_responses=False) as client:
            return list(client.scan_iter(b"*:h:*", count=1000))

    def _settings(self) -> dict[str, str]:
        return {
            "REDIS_URL": self._redis.url,
            "DATABASE_URL": self._postgres.url(self._database),
            # A machine that is busy with all this is not to be taken for a Redis that is away.
            "REDIS_CONNECT_TIMEOUT": "2",
            "REDIS_CALL_TIMEOUT": "2",
            "RECONCILE_DELAYS": "0.1,0.2",
            "LOG_MODE": "off",
            "LOG_LEVEL": "error",
            "PYTHONPATH": str(Path(__file__).with_name("watched")),
            "FAREGATE_SOAK_TOLD": str(self._told),
        }

    def _sql(self, statement: str) -> tuple[str | None, ...]:
        (row,) = self._postgres.sql(self._database, statement)
        return row

    def _work_left(self) -> list[float]:
        found = WORK_LEFT.findall(httpx.get(f"{self.gateway.url}/metrics", headers={"connection": "close"}).text)
        assert len(found) == 3, found
        return [float(number) for _, number in found]

    def _files(self) -> Counter[str]:
        """Open files by what they are: connections by whom they are with, others by their paths."""
        process = Path(f"/proc/{self.gateway.process.pid}")
        peers = {
            self.gateway.process.port: "client",
            urlsplit(self._simulator.url).port: "upstream",
            self._redis.port: "redis",
            self._postgres.port: "database",
        }
        sockets = {}
        for line in (process / "net" / "tcp").read_text().splitlines()[1:]:
            _, local, remote, _, _, _, _, _, _, inode, *_ = line.split()
            ports = [int(address.rpartition(":")[2], 16) for address in (local, remote)]
            if ports[1]:
                sockets[f"socket:[{inode}]"] = next((peers[port] for port in ports if port in peers), "?")
        found: Counter[str] = Counter()
        for path in (process / "fd").iterdir():
            try:
                name = str(path.readlink())
            except FileNotFoundError:
                continue
            found[sockets.get(name, name.partition(":")[0])] += 1
        return found
