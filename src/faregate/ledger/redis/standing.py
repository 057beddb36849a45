"""Where the shared ledger stands: its epoch and era, and what it counts, as this node knows it.

An epoch is one set of counters in one Redis. It ends when the counters are gone, or may not all be there any more:
Redis was emptied, restarted, or failed over to a replica that may lack the last writes. Then one node founds a new
one, under a lock: it takes a new era from the database (see `ledger/seeds.py`), the counters are set to the sums of the
records of earlier eras, every node brings back the holds of its requests in flight, and only then is anybody admitted
again. A new shape of limit begins a new era in the same epoch, and only its own counters are built.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, NamedTuple

from faregate.ledger.port import Counter, LedgerAway
from faregate.ledger.redis.again import AGAIN_AFTER, TRIES
from faregate.ledger.redis.background import Work, seen
from faregate.ledger.redis.building import POLL, Builder
from faregate.ledger.redis.building import SCRIPTS as BUILDING_SCRIPTS
from faregate.ledger.redis.link import Link
from faregate.ledger.redis.lock import SCRIPTS as LOCK_SCRIPTS
from faregate.ledger.redis.lock import BuildLock
from faregate.ledger.redis.names import Keys, known_as, shape_named, shape_of
from faregate.ledger.redis.scripts import load
from faregate.ledger.seeds import Records
from faregate.policy.rulebook import Shape

PATIENCE = 1.0
"""Seconds that a request waits for counters that are being built before the outage rule applies to it."""

LEARNING_PATIENCE = 10.0
"""Seconds that an administrator waits for the counters of a new limit."""

JOIN_PATIENCE = 1.5
"""Seconds that a new epoch waits for nodes that were alive to bring their holds: service is to be normal within 2 s."""

REBUILD_AGAIN = 0.25
"""Seconds before holds are brought again, or counters built, that are not all there yet although Redis answers."""

REMEMBERED_MOST = 65_536
"""Names of counters of which is remembered that they are built."""

LOOK, JOIN = map(load, ("look", "join"))
SCRIPTS = (LOOK, JOIN, *BUILDING_SCRIPTS, *LOCK_SCRIPTS)

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
        self._keys = keys
        self._node = node
        self._bring = bring
        self._follow = follow
        self._lock = BuildLock(link, keys.lock, node)
        self._builder = Builder(link, records, keys, self._lock.owner, now=now, moment=moment)
        self._looking = Work(self._look_around, "ledger standing", self._looked)
        # A task of its own: who waits for it may leave, and a new era of the database must get to Redis all the same.
        self._widening = Work(self._begin_era, "ledger widening")
        self._building = Work(self._build, "ledger building")
        self._entering: asyncio.Task[None] | None = None
        self._server = b""
        self._wanted: dict[Shape, None] = {}
        self._beyond = -1
        self._newest = 0
        self._changed = asyncio.Event()
        self._entered = 0
        # Names of counters that are built: of those that were asked for since `learned` changed.
        self._counted: set[str] = set()
        self.known = False
        self.epoch = 0
        self.era = 0
        self.state = b""
        self.namespace = b""
        self.learned: dict[Shape, Learned] = {}
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
        self._looking.begin()

    async def certain(self) -> None:
        """Return once the standing is known. Raises `LedgerAway`."""
        if self.known:
            return
        try:
            async with asyncio.timeout(PATIENCE):
                await asyncio.shield(self._looking.begin())
        except TimeoutError:
            raise _being_built() from None

    def has(self, names: Iterable[str]) -> bool:
        """Whether the standing is known, and the counters of these names are built as far as is remembered."""
        return self.known and self._counted.issuperset(names)

    async def ready(self, counters: Sequence[Counter]) -> None:
        """Return once `counters` are built, learning their shapes if they are new. Raises `LedgerAway`."""
        if not self.known:
            await self.certain()
        shapes = [shape_of(counter) for counter in counters]
        # Somebody's first request needs no waiting, if others have the same limits.
        if not self._has_built(shapes):
            await self.learn(shapes, PATIENCE)
        if len(self._counted) > REMEMBERED_MOST:
            self._counted.clear()
        if self._has_built(shapes):
            self._counted.update(known_as(counter).name for counter in counters)

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
                        await asyncio.shield(self._widening.begin())
                    elif self._has_built(wanted):
                        return
                    else:
                        self._building.begin()
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
                    await asyncio.shield(self._widening.begin())
                    await self.certain()
        except TimeoutError:
            raise _being_built() from None

    async def stop(self) -> None:
        """End what runs in the background."""
        all_tasks = (self._looking.task, self._building.task, self._entering, self._widening.task)
        tasks = [task for task in all_tasks if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _has_built(self, shapes: Iterable[Shape]) -> bool:
        learned = self.learned
        return all(shape in learned and learned[shape].ready for shape in shapes)

    def _connected(self, server: str) -> None:
        if server.encode() != self._server:
            self._server = server.encode()
            self.doubt()

    def _looked(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            error = task.exception()
            self.trouble = None if error is None else str(error)

    async def _look_around(self) -> None:
        while not await self._sees():
            if not await self._found():
                await asyncio.sleep(POLL)
        if any(not learned.ready for learned in self.learned.values()):
            self._building.begin()

    async def _sees(self) -> bool:
        for _ in range(TRIES):
            try:
                return await self._adopt()
            except AGAIN_AFTER:
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
        epoch, _, era = state.partition(b".") if state else (b"0", b"", b"0")
        self._newest = max(self._newest, int(era))
        if not state or (server and founded_on != server) or server != self._server:
            return False
        learned = {
            shape_named(name): Learned(int(era.rstrip(b"+")), not era.endswith(b"+"))
            for name, era in zip(flat[::2], flat[1::2], strict=True)
        }
        self.epoch, self.era, self.state = int(epoch), int(era), state
        self.namespace = keys.namespace(self.epoch)
        if learned != self.learned:
            self.learned = learned
            self._counted.clear()
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
        self._entering.add_done_callback(seen)

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
        async with self._lock.held() as locked:
            if not locked or await self._adopt():
                return locked
            await self._builder.found(self._server, self.learned, self._newest)
            self.rebuilds += 1
            return True

    async def _begin_era(self) -> None:
        """Begin a new era for the shapes that are wanted, or because the one of now is over in the database."""
        async with self._lock.held() as locked:
            if not locked:
                await asyncio.sleep(POLL)
            elif await self._adopt():
                missing = [shape for shape in self._wanted if shape not in self.learned]
                self._wanted.clear()
                if missing or self.era <= self._beyond:
                    await self._builder.widen(self.epoch, missing, self._newest)
        self.doubt()
        await self.certain()

    async def _build(self) -> None:
        while True:
            locked = False
            try:
                async with self._lock.held() as locked:
                    if locked and await self._adopt():
                        for era in sorted({learned.era for learned in self.learned.values() if not learned.ready}):
                            await self._build_era(era)
                self.doubt()
                await self.certain()
                if all(learned.ready for learned in self.learned.values()):
                    self.trouble = None
                    if locked:
                        await self._builder.sweep(self.epoch)
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
        shapes = [shape for shape, learned in self.learned.items() if learned == (era, False)]
        state, namespace = self.state, self.namespace
        if not await self._builder.seed(state, namespace, shapes, era):
            return
        if era == self.epoch:
            if self._entering is not None:
                await asyncio.wait([self._entering], timeout=JOIN_PATIENCE)
            await self._builder.everybody_in(state, namespace, JOIN_PATIENCE)
        await self._builder.ready(state, shapes, era)

    def _join(self) -> asyncio.Future[Any]:
        peers = [part for peer in self.peers.items() for part in peer]
        return self._link.call(
            JOIN, [self._keys.state, self._keys.nodes], [self.state, self.namespace, self._node, *peers]
        )

    async def _next_change(self) -> None:
        try:
            async with asyncio.timeout(POLL):
                await self._changed.wait()
        except TimeoutError:
            pass
        self.doubt()


def _being_built() -> LedgerAway:
    return LedgerAway("the counters in Redis are being built from the database; that takes a moment")
