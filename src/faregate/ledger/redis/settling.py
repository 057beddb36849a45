"""Charging a request: its hold becomes what it really cost, and its record goes to this node's outbox, in one call."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from faregate.ledger.forms import Charges
from faregate.ledger.port import AlreadySettled, LedgerAway, Settled, ShapesChanged
from faregate.ledger.redis.again import AGAIN_AFTER, TRIES
from faregate.ledger.redis.calls import Calls
from faregate.ledger.redis.clock import LedgerClock
from faregate.ledger.redis.forms import packed_charges
from faregate.ledger.redis.holds import NodeHolds
from faregate.ledger.redis.link import Link, NotSent
from faregate.ledger.redis.names import MOST, packed_list, ticks
from faregate.ledger.redis.outbox import NodeOutbox
from faregate.ledger.redis.scripts import load
from faregate.ledger.redis.standing import Standing
from faregate.records import UsageRecord, altered

SETTLE = load("settle")
SCRIPTS = (SETTLE,)

_encoder = msgspec.json.Encoder()


class Settling:
    """Settles requests, and knows of which it is not sure whether they are."""

    def __init__(
        self,
        link: Link,
        calls: Calls,
        standing: Standing,
        outbox: NodeOutbox,
        holds: NodeHolds,
        clock: LedgerClock,
        node: str,
    ) -> None:
        self._link = link
        self._calls = calls.opened(SETTLE, [outbox.key])
        self._standing = standing
        self._outbox = outbox
        self._holds = holds
        self._clock = clock
        self._node = node
        self._unsure: set[str] = set()
        self._abandoned: list[Callable[[UsageRecord], None]] = []

    def on_abandoned(self, callback: Callable[[UsageRecord], None]) -> None:
        """Call `callback(record)` when who settles `record` is cancelled meanwhile."""
        self._abandoned.append(callback)

    def written(self, records: Iterable[UsageRecord]) -> None:
        """The database has these: nobody will settle them again."""
        if self._unsure:
            self._unsure.difference_update(record.facts.request_id for record in records)

    async def settle(self, request_id: str, charges: Charges, record: UsageRecord) -> Settled | AlreadySettled:
        """See `RedisLedger.settle`."""
        if min(charges.named(), default=0) < 0:
            raise ValueError(f"Request {request_id} is charged a negative amount; a charge gives nothing back.")
        try:
            return await self._settle(request_id, charges, record)
        except asyncio.CancelledError:
            # Who settles it is gone. It may be charged, and it may not: its record is needed in either case.
            self._unsure.add(request_id)
            for callback in self._abandoned:
                callback(record)
            raise

    async def _settle(self, request_id: str, charges: Charges, record: UsageRecord) -> Settled | AlreadySettled:
        standing = self._standing
        shapes = standing.learned
        if record.era:
            await standing.advance(record.era)
        if not standing.known:
            await standing.certain()
        for attempt in range(TRIES):
            if standing.learned is not shapes:
                raise ShapesChanged
            era = standing.era
            try:
                reply = await self._calls.once(*self._arguments(charges, record))
            except AGAIN_AFTER as error:
                self._doubt(error, request_id)
                if attempt == TRIES - 1 or self._link.failure is not None:
                    raise
                await standing.certain()
                continue
            except LedgerAway as error:
                self._doubt(error, request_id)
                raise
            if reply[0] != b"stale":
                return self._settled(record, era, reply)
            standing.doubt()
            await standing.certain()
        raise LedgerAway("the counters in Redis change too fast to be charged")

    def _arguments(self, charges: Charges, record: UsageRecord) -> tuple[bytes, bytes, bytes]:
        standing, facts = self._standing, record.facts
        own: list[str | int | bool] = [
            facts.request_id,
            self._node,
            standing.era,
            ticks(facts.admitted_at),
            self._clock.here().decode(),
            record.era,
            self._outbox.entries.get(facts.request_id, b"").decode(),
        ]
        own += [str(min(amount, MOST)) for amount in charges.named()]
        return (
            packed_charges(charges.form, standing.learned, self._clock.time()),
            packed_list(own),
            _encoder.encode(altered(record, era=standing.era)),
        )

    def _settled(self, record: UsageRecord, era: int, reply: Sequence[Any]) -> Settled | AlreadySettled:
        request_id = record.facts.request_id
        self._holds.forget(request_id)
        unsure = request_id in self._unsure
        self._unsure.discard(request_id)
        match reply[0]:
            case b"settled" | b"amended":
                self._outbox.entries[request_id] = reply[1]
                return Settled(era)
            # By an earlier try of ours; also of a record that was charged again since, by whom we have it from.
            case b"own" if unsure or 0 < record.era < reply[1]:
                self._outbox.entries[request_id] = reply[2]
                return Settled(reply[1])
        return AlreadySettled()

    def _doubt(self, error: LedgerAway, request_id: str) -> None:
        if not isinstance(error, NotSent):
            self._unsure.add(request_id)
