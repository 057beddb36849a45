"""Keeps this node's holds alive, and takes over those of nodes that stopped."""

import asyncio
import logging
from typing import Protocol

from faregate.accounting.accountant import Accountant
from faregate.accounting.background import background, ended, ended_soon
from faregate.accounting.clock import Clock, SystemClock
from faregate.ledger.port import Ledger, LedgerAway

LEASE_SECONDS = 15.0
"""How long a hold outlives its node (design, section 5)."""

RENEW_SECONDS = 5.0

RENEW_SHARED_SECONDS = 2.0
"""Where other nodes would take what is not renewed: several tries fit in a lease."""

CALM_ROUNDS = 2
"""Rounds without an interruption before anything of other nodes is taken."""

log = logging.getLogger(__name__)


class Sweeper(Protocol):
    """Who looks for what else dead nodes left, where a ledger is shared: the janitor."""

    async def sweep(self) -> None:
        """Take over what there is."""
        ...


class Leases:
    """Renews the leases of one node, every few seconds, and then takes over what dead nodes left.

    Where the ledger is shared (there is a `janitor`) a node that has just started, or that could not renew for half a
    lease, only renews for some rounds: the ledger was away then, or the whole machine slept, so other living nodes
    could not renew either. What looks expired is theirs, and they will renew it in a moment.

    What is taken over has to do with the database, which may be silent for longer than a lease: nothing of this node's
    waits for that.
    """

    def __init__(
        self,
        ledger: Ledger,
        accountant: Accountant,
        node: str,
        *,
        janitor: Sweeper | None = None,
        lease: float = LEASE_SECONDS,
        every: float | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`lease` and `every` are in seconds."""
        self._ledger = ledger
        self._accountant = accountant
        self._node = node
        self._janitor = janitor
        self._lease = lease
        self._every = every or (RENEW_SECONDS if janitor is None else RENEW_SHARED_SECONDS)
        self._clock = clock or SystemClock()
        self._renewed_at = float("-inf")
        self._calm_since = 0.0
        self._is_away = False
        self._stopping = False
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._taking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to renew."""
        self._stopping = False
        self._task = background(self._run(), "leases")

    async def stop(self) -> None:
        """Renew no more: what is still held is left to whoever comes after this node."""
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            await ended(self._task)
            self._task = None
        if self._taking is not None:
            await ended_soon(self._taking)
            self._taking = None

    def hurry(self) -> None:
        """The ledger is back after it was away: renew at once."""
        self._wake.set()

    async def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            try:
                await self._renew(self._clock.time())
                self._is_away = False
            except LedgerAway as error:
                if not self._is_away:
                    log.warning("leases are renewed when the ledger is back: %s", error)
                self._is_away = True
            except Exception:
                # Whatever it was: a node that stops renewing loses all its holds.
                log.exception("leases could not be renewed; tried again in %g seconds", self._every)
            await self._clock.wait(self._wake, self._every)

    async def _renew(self, now: float) -> None:
        # Ours first: after the machine has slept, all leases are over, and only the others' may be taken.
        await self._ledger.renew(self._node, self._lease, now)
        if not 0 <= now - self._renewed_at <= self._lease / 2:
            self._calm_since = now
        self._renewed_at = now
        if self._is_calm(now) and (self._taking is None or self._taking.done()):
            self._taking = background(self._take(), "taking over")

    def _is_calm(self, now: float) -> bool:
        if self._janitor is None:
            return True
        is_steady = 0 <= now - self._renewed_at <= self._lease / 2
        return is_steady and now - self._calm_since >= CALM_ROUNDS * self._every

    async def _take(self) -> None:
        try:
            if self._janitor is not None:
                # Rows before holds: a row knows how its request ended, and perhaps what it cost.
                await self._janitor.sweep()
            now = self._clock.time()
            if self._is_calm(now):
                await self._accountant.take_over(self._node, self._lease, now)
        except LedgerAway as error:
            log.info("what dead nodes held is looked for again in the next round: %s", error)
        except Exception:
            # Whatever it was: the next round may succeed.
            log.exception("what dead nodes left could not be taken over; tried again in %g seconds", self._every)
