"""Nodes with one engine each in front of a Redis that fails as it is told to, and the records behind them."""

import asyncio
import time
from collections import Counter as Sums
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from ledger_world import counter, facts, record
from redis_server import RedisServer

from faregate.ledger.port import (
    AlreadySettled,
    Balance,
    Claim,
    Counter,
    Held,
    LedgerAway,
    Refused,
    Settled,
    ShapesChanged,
)
from faregate.ledger.redis.dialer import dialer_for
from faregate.ledger.redis.engine import SCRIPTS, RedisLedger
from faregate.ledger.redis.link import Link
from faregate.ledger.redis.names import Keys, shape_of
from faregate.ledger.seeds import RecordsAway, Seed
from faregate.policy.model import Meter, Window
from faregate.policy.rulebook import Shape
from faregate.records import UsageRecord, altered

SECONDS = 20.0
"""How long a test waits for what must come."""

LEASE = 15.0
KEYS = Keys("e")
TOTAL = counter(window=Window.TOTAL)
SLOTS = counter(Meter.CONCURRENT, None)
RATE = counter(Meter.REQUESTS, Window.MINUTE)
TOKENS = counter(Meter.TOKENS, Window.TOTAL)


class Database:
    """Records by era, as the database keeps them: what was charged in an era that is over is refused."""

    def __init__(self) -> None:
        self.era = 0
        self.rows: dict[str, tuple[int, Sequence[tuple[Counter, int]], float]] = {}
        self.builds = 0
        self.away = False
        self.open = asyncio.Event()
        self.open.set()

    async def next_era(self, above: int = 0) -> int:
        if self.away:
            raise RecordsAway("the database is away")
        self.era = max(self.era, above) + 1
        return self.era

    async def charged(self, shapes: Iterable[Shape], era: int, now: float) -> list[Seed]:
        self.builds += 1
        await self.open.wait()
        wanted, sums, minutes = set(shapes), Sums[Counter](), []
        for request_id, (charged_in, charges, at) in self.rows.items():
            for on, amount in charges:
                if charged_in >= era or shape_of(on) not in wanted:
                    continue
                if on.window is Window.MINUTE:
                    minutes.append(Seed(on, amount, request_id, at))
                else:
                    sums[on] += amount
        return minutes + [Seed(on, amount) for on, amount in sums.items()]

    def write(self, kept: UsageRecord, charges: Sequence[tuple[Counter, int]]) -> bool:
        """False if its era is over."""
        request_id = kept.facts.request_id
        if request_id not in self.rows and 0 < kept.era < self.era:
            return False
        self.rows.setdefault(request_id, (kept.era, charges, kept.facts.admitted_at))
        return True


class Node:
    """One engine with its own link."""

    def __init__(self, url: str, database: Database, name: str, *, by_hand: bool, timeout: float) -> None:
        dialer = dialer_for(url, slot_key=KEYS.state, connect_timeout=2, name="test")
        self.name = name
        self.database = database
        self.link = Link(dialer, call_timeout=timeout, connect_timeout=2, probe_every=0.02, load=SCRIPTS)
        self.ledger = RedisLedger(self.link, database, name, prefix="e", clock_by_hand=by_hand)
        self.now = time.time()
        self.link.start()

    async def ask(self, request_id: str, *claims: Claim, lease: float = LEASE) -> Held | Refused:
        return await self.ledger.reserve(
            facts(request_id, self.now),
            node=self.name,
            lease=lease,
            claims=claims or [Claim(TOTAL, 10)],
            cap_wanted=0,
            cap_min=0,
            now=self.now,
        )

    async def pay(
        self, request_id: str, *charges: tuple[Counter, int], era: int = 0
    ) -> tuple[Settled | AlreadySettled, UsageRecord]:
        kept = altered(record(request_id, self.now), era=era)
        while True:
            try:
                done = await self.ledger.settle(request_id, charges, kept)
            except ShapesChanged:
                continue
            return done, altered(kept, era=done.era) if isinstance(done, Settled) else kept

    async def see(self, *of: Counter) -> list[Balance]:
        return await self.ledger.peek(of, self.now)

    async def close(self) -> None:
        await self.ledger.stop()
        await self.link.close()


Nodes = Callable[..., Node]


async def until(happened: Callable[[], Awaitable[Any]], otherwise: str) -> Any:
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                if found := await happened():
                    return found
            except LedgerAway:
                pass
            await asyncio.sleep(0.01)
    raise AssertionError(otherwise)


def keys(server: RedisServer) -> list[str]:
    with server.client() as client:
        return sorted(client.scan_iter("*", count=1000))


def stream(server: RedisServer, name: str = "a") -> list[Any]:
    with server.client() as client:
        return client.xrange(KEYS.outbox(name))
