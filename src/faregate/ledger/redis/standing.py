"""Where the shared ledger stands: its epoch and era, and what it counts, as this node knows it.

An epoch is one set of counters in one Redis. It ends when the counters are gone, or may not all be there any more:
Redis was emptied, restarted, or failed over to a replica that may lack the last writes. Then one node founds a new
one, under a lock: it takes a new era from the database (see `ledger/seeds.py`), the counters are set to the sums of the
records of earlier eras, every node brings back the holds of its requests in flight, and only then is anybody admitted
again. A new shape of limit begins a new era in the same epoch, and only its own counters are built.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from faregate.ledger.port import Counter, LedgerAway
from faregate.ledger.redis.link import ConnectionLost, Link, NotSent
from faregate.ledger.redis.names import Keys, lifetime, micros, name_of, shape_name, shape_named, shape_of
from faregate.ledger.redis.scripts import load
from faregate.ledger.seeds import Records, RecordsAway, Seed
from faregate.policy.model import Meter, Window
from faregate.policy.rulebook import Shape

PATIENCE = 1.0
"""Seconds that a request waits for counters that are being built before the outage rule applies to it."""

LEARNING_PATIENCE = 10.0
"""Seconds that an administrator waits for the counters of a new limit."""

JOIN_PATIENCE = 1.5
"""Seconds that a new epoch waits for nodes that were alive to bring their holds: service is to be normal within 2 s."""

POLL = 0.05
TRIES = 3
LOCK_SECONDS = 5
SEEDS_AT_ONCE = 200
REBUILD_AGAIN = 0.25

COUNTED_MOST = 65_536
"""Names that are remembered as built."""

SWEPT_AT_ONCE = 500
"""Keys that one step of a sweep looks at."""

LOOK, FOUND, WIDEN, SEED, READY, JOIN, MISSING, LOCK, UNLOCK = map(
    load, ("look", "found", "widen", "seed", "ready", "join", "missing", "lock", "unlock")
)
SCRIPTS = (LOOK, FOUND, WIDEN, SEED, READY, JOIN, MISSING, LOCK, UNLOCK)

log = logging.getLogger(__name__)


class Learned(NamedTuple):
    """In which era a shape was learned, and whether its counters are built."""

    era: int
    ready: bool


class Standing:
    """This node's view of the shared ledger. `era`, `state`, `namespace` and `learned` hold while it is `known`."""

    def __init__(
        self,
        link: Link,
        records: Records,
        keys: Keys,
        node: str,
        *,
        now: Callable[[], float],
        moment: Callable[[], bytes],
        bring: Callable[[], list[asyncio.Future[Any]]],
        follow: Callable[[], Awaitable[None]],
    ) -> None:
        """`bring` sends this node's holds to a new epoch, before anything else is sent there; `follow` sees to all else
        that the node has to bring. `now` is in epoch seconds, `moment` what scripts are told is the time: nothing where
        it is Redis's own."""
        self._link = link
        self._records = records
        self._keys = keys
        self._node = node
        self._now = now
        self._moment = moment
        self._bring = bring
        self._follow = follow
        self._owner = f"{node}/{secrets.token_hex(8)}".encode()
        self._server = b""
        self._looking: asyncio.Task[None] | None = None
        self._building: asyncio.Task[None] | None = None
        self._entering: asyncio.Task[None] | None = None
        self._widening: asyncio.Task[None] | None = None
        self._wanted: dict[Shape, None] = {}
        self._beyond = -1
        self._exclusive = asyncio.Lock()
        self._changed = asyncio.Event()
        self._entered = 0
        self.known = False
        self.epoch = 0
        self.era = 0
        self.state = b""
        self.namespace = b""
        self.learned: dict[Shape, Learned] = {}
        self.counted: set[bytes] = set()
        """Names of counters that are built, of those that were asked for since `learned` changed."""
        self.peers: dict[bytes, bytes] = {}
        """The nodes that were alive at the last renewal, and when their leases end (microseconds)."""
        self.rebuilds = 0
        self.trouble: str | None = None
        """Why the counters are not there or not built, if that failed the last time."""
        link.on_connect(self._connected)

    def doubt(self) -> None:
        """Something may have changed: look again before anything is counted."""
        self.known = False
        self._changed.set()

    def look_soon(self) -> None:
        """Like `doubt`, and do so now, also where no request comes."""
        self.doubt()
        self._look()

    async def certain(self) -> None:
        """Return once the standing is known. Raises `LedgerAway`."""
        if self.known:
            return
        try:
            async with asyncio.timeout(PATIENCE):
                await asyncio.shield(self._look())
        except TimeoutError:
            raise _being_built() from None

    async def ready(self, counters: Sequence[Counter]) -> None:
        """Return once `counters` are built, learning their shapes if they are new. Raises `LedgerAway`."""
        if not self.known:
            await self.certain()
        # This is asked for each request, and the answer is nearly always the same: a name is cheaper than a shape.
        if self.counted.issuperset(map(name_of, counters)):
            return
        await self.learn(map(shape_of, counters), PATIENCE)
        if len(self.counted) > COUNTED_MOST:
            self.counted.clear()
        self.counted.update(name_of(counter) for counter in counters if self.learned[shape_of(counter)].ready)

    async def learn(self, shapes: Iterable[Shape], patience: float = LEARNING_PATIENCE) -> None:
        """Have the counters of `shapes`. Raises `LedgerAway` if that takes longer than `patience` seconds."""
        wanted = list(shapes)
        try:
            async with asyncio.timeout(patience):
                while True:
                    await self.certain()
                    missing = [shape for shape in wanted if shape not in self.learned]
                    if missing:
                        self._wanted.update(dict.fromkeys(missing))
                        await asyncio.shield(self._widen())
                    elif all(self.learned[shape].ready for shape in wanted):
                        return
                    else:
                        self._build_soon()
                        await self._next_change()
        except TimeoutError:
            raise _being_built() from None

    async def advance(self, beyond: int) -> None:
        """Leave the era `beyond`, which is over in the database. Raises `LedgerAway`."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self.certain()
                while self.era <= beyond:
                    self._beyond = max(self._beyond, beyond)
                    await asyncio.shield(self._widen())
                    await self.certain()
        except TimeoutError:
            raise _being_built() from None

    async def stop(self) -> None:
        """End what runs in the background."""
        all_tasks = (self._looking, self._building, self._entering, self._widening)
        tasks = [task for task in all_tasks if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _connected(self, server: str) -> None:
        if server.encode() != self._server:
            self._server = server.encode()
            self.doubt()

    def _look(self) -> asyncio.Task[None]:
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_around(), name="ledger standing")
            self._looking.add_done_callback(self._looked)
        return self._looking

    def _looked(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            error = task.exception()
            self.trouble = None if error is None else str(error)

    async def _look_around(self) -> None:
        while not await self._sees():
            if not await self._found():
                await asyncio.sleep(POLL)
        if any(not learned.ready for learned in self.learned.values()):
            self._build_soon()

    async def _sees(self) -> bool:
        for _ in range(TRIES):
            try:
                return await self._adopt()
            except (ConnectionLost, NotSent):
                # The connection was of the server before this one: the next try makes its own.
                if self._link.failure is not None:
                    raise
        return await self._adopt()

    async def _adopt(self) -> bool:
        """Take over how things stand in Redis; whether there is an epoch that counts."""
        keys = self._keys
        self._changed.clear()
        server = self._server
        state, founded_on, flat = await self._link.call(LOOK, [keys.state, keys.server, keys.shapes], [])
        if not state or (server and founded_on != server) or server != self._server:
            return False
        learned = {
            shape_named(name): Learned(int(era.rstrip(b"+")), not era.endswith(b"+"))
            for name, era in zip(flat[::2], flat[1::2], strict=True)
        }
        epoch, _, era = state.partition(b".")
        self.epoch, self.era, self.state = int(epoch), int(era), state
        self.namespace = keys.namespace(self.epoch)
        if learned != self.learned:
            self.learned = learned
            self.counted.clear()
        self.known = True
        if self._entered != self.epoch:
            self._enter_soon()
        return True

    def _enter_soon(self) -> None:
        # The holds are under way before anybody learns that the epoch is known: nothing of this node overtakes them.
        self._entered = self.epoch
        brought = self._bring()
        if self._entering is not None:
            self._entering.cancel()
        self._entering = asyncio.create_task(self._enter(self.epoch, brought), name="ledger entering")
        self._entering.add_done_callback(_seen)

    async def _enter(self, epoch: int, brought: list[asyncio.Future[Any]]) -> None:
        """Bring what this node has into `epoch`, again and again until all is there, then say so."""
        while True:
            try:
                replies = await asyncio.gather(*brought)
                await self._follow()
                replies.append(await self._join())
                if all(reply[0] != b"stale" for reply in replies):
                    return
                # A new era of the same epoch came in between. A new epoch would end this task.
                self.doubt()
                await self.certain()
            except LedgerAway as error:
                log.info("this node's holds and records are not all in epoch %d yet: %s", epoch, error)
                if self._link.failure is not None:
                    self._entered = 0
                    self.doubt()
                    return
                await asyncio.sleep(REBUILD_AGAIN)
            brought = self._bring()

    async def _found(self) -> bool:
        """Begin a new epoch, unless somebody else is about to."""
        keys = self._keys
        async with self._locked() as locked:
            if not locked or await self._adopt():
                return locked
            server = self._server
            era = await self._next_era()
            shapes = [shape_name(shape) for shape in self.learned]
            log.warning("Redis has no counters that can be relied on: they are built from the database, epoch %d", era)
            await self._link.call(
                FOUND,
                [keys.state, keys.server, keys.shapes, keys.lock],
                [self._owner, era, server, keys.channel, *shapes],
            )
            self.rebuilds += 1
            return True

    def _widen(self) -> asyncio.Task[None]:
        # A task of its own: who waits for it may leave, and a new era of the database must get to Redis all the same.
        if self._widening is None or self._widening.done():
            self._widening = asyncio.create_task(self._begin_era(), name="ledger widening")
            self._widening.add_done_callback(_seen)
        return self._widening

    async def _begin_era(self) -> None:
        """Begin a new era for the shapes that are wanted, or because the one of now is over in the database."""
        keys = self._keys
        async with self._locked() as locked:
            if not locked:
                await asyncio.sleep(POLL)
            elif await self._adopt():
                missing = [shape_name(shape) for shape in self._wanted if shape not in self.learned]
                self._wanted.clear()
                if missing or self.era <= self._beyond:
                    era = await self._next_era()
                    await self._link.call(
                        WIDEN,
                        [keys.state, keys.shapes, keys.lock],
                        [self._owner, self.epoch, era, keys.channel, *missing],
                    )
        self.doubt()
        await self.certain()

    def _build_soon(self) -> None:
        if self._building is None or self._building.done():
            self._building = asyncio.create_task(self._build(), name="ledger building")
            self._building.add_done_callback(_seen)

    async def _build(self) -> None:
        while True:
            locked = False
            try:
                async with self._locked() as locked:
                    if locked and await self._adopt():
                        for era in sorted({learned.era for learned in self.learned.values() if not learned.ready}):
                            await self._build_era(era)
                self.doubt()
                await self.certain()
                if all(learned.ready for learned in self.learned.values()):
                    self.trouble = None
                    if locked:
                        await self._sweep()
                    return
            except LedgerAway as error:
                trouble = f"the counters in Redis are not built yet: {error}"
                # Once is news: it is tried again many times in a second.
                log.log(logging.DEBUG if trouble == self.trouble else logging.WARNING, trouble)
                self.trouble = trouble
                if self._link.failure is not None:
                    return
            await asyncio.sleep(POLL if not locked else REBUILD_AGAIN)

    async def _build_era(self, era: int) -> None:
        keys, now = self._keys, self._now()
        shapes = [shape for shape, learned in self.learned.items() if learned == (era, False)]
        state, namespace = self.state, self.namespace
        try:
            seeds = await self._records.charged(shapes, era, now)
        except RecordsAway as error:
            raise LedgerAway(f"the database cannot tell what was spent: {error}") from error
        pending = [
            self._link.call(
                SEED,
                [keys.state, keys.lock],
                [state, namespace, self._owner, *(part for seed in some for part in _parts(seed, now))],
            )
            for some in _chunks(seeds)
        ]
        for reply in await asyncio.gather(*pending):
            if reply[0] != b"set":
                return
        if era == self.epoch:
            await self._everybody_in(state, namespace)
        named = [part for shape in shapes for part in (shape_name(shape), era)]
        await self._link.call(READY, [keys.state, keys.lock, keys.shapes], [state, self._owner, keys.channel, *named])

    async def _everybody_in(self, state: bytes, namespace: bytes) -> None:
        """Wait until the nodes that were alive have brought their holds, but not for ever: one may have died."""
        missing: list[bytes] = []
        if self._entering is not None:
            await asyncio.wait([self._entering], timeout=JOIN_PATIENCE)
        for _ in range(round(JOIN_PATIENCE / POLL)):
            _, *missing = await self._link.call(
                MISSING, [self._keys.state, self._keys.nodes], [state, namespace, self._moment()]
            )
            if not missing:
                return
            await asyncio.sleep(POLL)
        log.warning("%d nodes have not brought their holds back in time; they may be dead", len(missing))

    def _join(self) -> asyncio.Future[Any]:
        peers = [part for peer in self.peers.items() for part in peer]
        return self._link.call(
            JOIN, [self._keys.state, self._keys.nodes], [self.state, self.namespace, self._node, *peers]
        )

    async def _sweep(self) -> None:
        """Remove what former epochs left: most of it would stay for ever, and nothing reads it any more."""
        tag, cursor = self._keys.tag, b""
        try:
            while cursor != b"0":
                some = ("MATCH", tag + b"[0-9]*", "COUNT", SWEPT_AT_ONCE)
                cursor, found = await self._link.command("SCAN", cursor or b"0", *some)
                epochs = ((key, key[len(tag) :].partition(b":")[0]) for key in found)
                old = [key for key, epoch in epochs if epoch.isdigit() and int(epoch) < self.epoch]
                if old:
                    await self._link.command("UNLINK", *old)
        except LedgerAway as error:
            log.warning("What earlier counters left in Redis stays there: %s", error)

    async def _next_era(self) -> int:
        try:
            return await self._records.next_era()
        except RecordsAway as error:
            raise LedgerAway(f"the counters cannot be built without the database: {error}") from error

    async def _next_change(self) -> None:
        try:
            async with asyncio.timeout(POLL):
                await self._changed.wait()
        except TimeoutError:
            pass
        self.doubt()

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[bool]:
        """Whether this node alone may build. The lock ends with the node that has it."""
        key = self._keys.lock
        async with self._exclusive:
            if not await self._link.call(LOCK, [key], [self._owner, LOCK_SECONDS]):
                yield False
                return
            keeping = asyncio.create_task(self._keep_lock())
            keeping.add_done_callback(_seen)
            try:
                yield True
            finally:
                keeping.cancel()
                self._link.call(UNLOCK, [key], [self._owner]).add_done_callback(_seen)

    async def _keep_lock(self) -> None:
        while True:
            await asyncio.sleep(LOCK_SECONDS / 3)
            await self._link.command("EXPIRE", self._keys.lock, LOCK_SECONDS)


def _parts(seed: Seed, now: float) -> tuple[bytes | int | str, ...]:
    counter = seed.counter
    at = micros(seed.admitted_at) if counter.window is Window.MINUTE else b""
    return name_of(counter), lifetime(counter, now), seed.amount, seed.request_id, at


def _chunks(seeds: list[Seed]) -> list[list[Seed]]:
    useful = [seed for seed in seeds if seed.counter.meter is not Meter.CONCURRENT and seed.amount]
    return [useful[n : n + SEEDS_AT_ONCE] for n in range(0, len(useful), SEEDS_AT_ONCE)]


def _being_built() -> LedgerAway:
    return LedgerAway("the counters in Redis are being built from the database; that takes a moment")


def _seen(task: asyncio.Future[Any]) -> None:
    # Whoever waits for it hears of its error; where nobody does, the next call will meet the same.
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, LedgerAway):
        log.error("the shared ledger made a mistake", exc_info=error)
