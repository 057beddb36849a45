"""Keeps this node's holds alive, and takes over those of nodes that stopped."""

import asyncio
import logging

from faregate.accounting.accountant import Accountant
from faregate.accounting.background import background, ended
from faregate.accounting.clock import Clock, SystemClock
from faregate.ledger.port import Ledger

LEASE_SECONDS = 15.0
"""How long a hold outlives its node (design, section 5)."""

RENEW_SECONDS = 5.0

log = logging.getLogger(__name__)


class Leases:
    """Renews the leases of one node, every few seconds."""

    def __init__(
        self,
        ledger: Ledger,
        accountant: Accountant,
        node: str,
        *,
        lease: float = LEASE_SECONDS,
        every: float = RENEW_SECONDS,
        clock: Clock | None = None,
    ) -> None:
        """`lease` and `every` are in seconds."""
        self._ledger = ledger
        self._accountant = accountant
        self._node = node
        self._lease = lease
        self._every = every
        self._clock = clock or SystemClock()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to renew."""
        self._stopping.clear()
        self._task = background(self._run(), "leases")

    async def stop(self) -> None:
        """Renew no more: what is still held is left to whoever comes after this node."""
        self._stopping.set()
        if self._task is not None:
            await ended(self._task)
            self._task = None

    async def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                await self._renew(self._clock.time())
            except Exception:
                # Whatever it was: a node that stops renewing loses all its holds.
                log.exception("leases could not be renewed; tried again in %g seconds", self._every)
            await self._clock.wait(self._stopping, self._every)

    async def _renew(self, now: float) -> None:
        # Ours first: after the machine has slept, all leases are over, and only the others' may be taken.
        await self._ledger.renew(self._node, self._lease, now)
        await self._accountant.take_over(now)
