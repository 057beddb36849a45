"""The lock under which one node alone changes where the shared ledger stands, and builds its counters."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from faregate.ledger.redis.background import seen
from faregate.ledger.redis.link import Link
from faregate.ledger.redis.scripts import load

LOCK_SECONDS = 5
"""How long the lock outlives a node that dies with it, at most."""

LOCK, UNLOCK = map(load, ("lock", "unlock"))
SCRIPTS = (LOCK, UNLOCK)


class BuildLock:
    """The lock, for one node. Scripts that change anything under it ask Redis whether it is still `owner`'s."""

    def __init__(self, link: Link, key: bytes, node: str) -> None:
        self._link = link
        self._key = key
        self._exclusive = asyncio.Lock()
        self.owner = f"{node}/{secrets.token_hex(8)}".encode()
        """This run of the node: another run of the same node is somebody else."""

    @asynccontextmanager
    async def held(self) -> AsyncIterator[bool]:
        """Whether this node alone may build. The lock ends with the node that has it. Raises `LedgerAway`.

        The tasks of one node wait for each other; for another node nobody waits.
        """
        async with self._exclusive:
            if not await self._link.call(LOCK, [self._key], [self.owner, LOCK_SECONDS]):
                yield False
                return
            keeping = asyncio.create_task(self._keep())
            keeping.add_done_callback(seen)
            try:
                yield True
            finally:
                keeping.cancel()
                self._link.call(UNLOCK, [self._key], [self.owner]).add_done_callback(seen)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(LOCK_SECONDS / 3)
            # Not EXPIRE: it may be somebody else's by now, who must not be given more time by us.
            await self._link.call(LOCK, [self._key], [self.owner, LOCK_SECONDS])
