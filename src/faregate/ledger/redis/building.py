"""How counters come into Redis, step by step: what the one node does that has the lock (see `lock.py`).

A new epoch or era is begun with a new era from the database (see `ledger/seeds.py`). Its counters are set to the sums
of the records of earlier eras, the holds in flight are waited for if the epoch is new, and then the counters are
declared ready. A step that comes too late, as the lock is somebody else's by now or the ledger stands otherwise,
changes nothing in Redis. What former epochs left is swept away in the end; nobody reads it, so that needs no lock.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from faregate.ledger.port import LedgerAway
from faregate.ledger.redis.again import insist
from faregate.ledger.redis.link import Link
from faregate.ledger.redis.names import Keys, known_as, micros, shape_name
from faregate.ledger.redis.scripts import load
from faregate.ledger.seeds import Records, RecordsAway, Seed
from faregate.policy.model import Meter, Window
from faregate.policy.rulebook import Shape

POLL = 0.05
"""Seconds between two looks at what other nodes do."""

SEEDS_AT_ONCE = 200
"""Seeds that one call brings."""

CALLS_AT_ONCE = 4
"""Calls with seeds that are under way together: of more, the last would wait longer than a call may take."""

SWEPT_AT_ONCE = 500
"""Keys that one step of a sweep looks at."""

FOUND, WIDEN, SEED, MISSING, READY = map(load, ("found", "widen", "seed", "missing", "ready"))
SCRIPTS = (FOUND, WIDEN, SEED, MISSING, READY)

log = logging.getLogger(__name__)


class Builder:
    """The steps of building. It keeps nothing of where the ledger stands: each step is told.

    All but `sweep` raise `LedgerAway`: while Redis is away, and `found`, `widen` and `seed` also while the database is.
    """

    def __init__(
        self,
        link: Link,
        records: Records,
        keys: Keys,
        owner: bytes,
        *,
        now: Callable[[], float],
        moment: Callable[[], bytes],
    ) -> None:
        """`owner` is whose the lock has to be. `now` is in epoch seconds, `moment` what scripts are told is the time:
        nothing where it is Redis's own."""
        self._link = link
        self._records = records
        self._keys = keys
        self._owner = owner
        self._now = now
        self._moment = moment

    async def found(self, server: bytes, shapes: Iterable[Shape], above: int) -> None:
        """Begin an epoch above `above` on `server`, with `shapes`, whose counters are not built yet."""
        keys, names = self._keys, [shape_name(shape) for shape in shapes]
        era = await self._next_era(above)
        log.warning("Redis has no counters that can be relied on: they are built from the database, epoch %d", era)
        await self._link.call(
            FOUND,
            [keys.state, keys.server, keys.shapes, keys.lock],
            [self._owner, era, server, keys.channel, *names],
        )

    async def widen(self, epoch: int, shapes: Iterable[Shape], above: int) -> None:
        """Begin an era above `above` in `epoch`, with further `shapes`, whose counters are not built yet."""
        keys, names = self._keys, [shape_name(shape) for shape in shapes]
        era = await self._next_era(above)
        await self._link.call(
            WIDEN, [keys.state, keys.shapes, keys.lock], [self._owner, epoch, era, keys.channel, *names]
        )

    async def seed(self, state: bytes, namespace: bytes, shapes: Sequence[Shape], era: int) -> bool:
        """Set the counters of `shapes`, which were learned in `era`, to what they start from; whether that was in
        time."""
        keys = self._keys
        try:
            seeds = await self._records.charged(shapes, era, self._now())
        except RecordsAway as error:
            raise LedgerAway(f"the database cannot tell what was spent: {error}") from error
        calls = _chunks(seeds)
        for first in range(0, len(calls), CALLS_AT_ONCE):
            pending = [
                insist(
                    self._link,
                    SEED,
                    [keys.state, keys.lock],
                    [state, namespace, self._owner, self._moment(), *(part for seed in some for part in _parts(seed))],
                )
                for some in calls[first : first + CALLS_AT_ONCE]
            ]
            if any(reply[0] != b"set" for reply in await asyncio.gather(*pending)):
                return False
        return True

    async def everybody_in(self, state: bytes, namespace: bytes, patience: float) -> None:
        """Wait until the nodes that were alive have brought their holds, but not for ever: one may have died.

        Returns after about `patience` seconds in any case.
        """
        missing: list[bytes] = []
        for _ in range(round(patience / POLL)):
            _, *missing = await self._link.call(
                MISSING, [self._keys.state, self._keys.nodes], [state, namespace, self._moment()]
            )
            if not missing:
                return
            await asyncio.sleep(POLL)
        log.warning("%d nodes have not brought their holds back in time; they may be dead", len(missing))

    async def ready(self, state: bytes, shapes: Iterable[Shape], era: int) -> None:
        """Declare that the counters of `shapes`, which were learned in `era`, are built."""
        keys = self._keys
        named = [part for shape in shapes for part in (shape_name(shape), era)]
        await self._link.call(READY, [keys.state, keys.lock, keys.shapes], [state, self._owner, keys.channel, *named])

    async def sweep(self, epoch: int) -> None:
        """Remove what epochs before `epoch` left: most of it would stay for ever, and nothing reads it any more."""
        tag, cursor = self._keys.tag, b""
        try:
            while cursor != b"0":
                some = ("MATCH", tag + b"[0-9]*", "COUNT", SWEPT_AT_ONCE)
                cursor, found = await self._link.command("SCAN", cursor or b"0", *some)
                epochs = ((key, key[len(tag) :].partition(b":")[0]) for key in found)
                old = [key for key, former in epochs if former.isdigit() and int(former) < epoch]
                if old:
                    await self._link.command("UNLINK", *old)
        except LedgerAway as error:
            log.warning("What earlier counters left in Redis stays there: %s", error)

    async def _next_era(self, above: int) -> int:
        try:
            return await self._records.next_era(above)
        except RecordsAway as error:
            raise LedgerAway(f"the counters cannot be built without the database: {error}") from error


def _parts(seed: Seed) -> tuple[bytes | int | str, ...]:
    at = micros(seed.admitted_at) if seed.counter.window is Window.MINUTE else b""
    return *known_as(seed.counter), seed.amount, seed.request_id, at


def _chunks(seeds: list[Seed]) -> list[list[Seed]]:
    useful = [seed for seed in seeds if seed.counter.meter is not Meter.CONCURRENT and seed.amount]
    return [useful[n : n + SEEDS_AT_ONCE] for n in range(0, len(useful), SEEDS_AT_ONCE)]
