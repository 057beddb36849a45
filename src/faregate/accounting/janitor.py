"""Takes over what dead nodes left behind, besides their holds: records not written yet, and rows not settled yet."""

import logging
from collections.abc import Sequence
from typing import Protocol

from faregate.accounting.accountant import Accountant
from faregate.accounting.outbox import Outbox
from faregate.directory import User
from faregate.ledger.port import LedgerAway
from faregate.records import UsageRecord
from faregate.store.errors import StoreUnavailable

AT_ONCE = 500
"""Rows that are taken over in one step."""

log = logging.getLogger(__name__)


class Estate(Protocol):
    """What nodes leave in a shared ledger."""

    @property
    def alive(self) -> Sequence[str]:
        """The ids of the nodes whose lease ran when this one last renewed its own, this one included."""
        ...

    async def inherit(self, limit: int) -> list[User | UsageRecord]:
        """Rows of dead nodes that are this node's to write from now on; none if there are none. Raises `LedgerAway`."""
        ...


class PendingRows(Protocol):
    """What nodes leave in the database."""

    async def claim_pending(self, alive: Sequence[str], limit: int) -> list[UsageRecord]:
        """Pending rows of nodes that are not `alive`; they are this node's from now on. Raises `StoreUnavailable`."""
        ...


class Janitor:
    """Looks after what dead nodes left in a shared ledger and in the database."""

    def __init__(self, estate: Estate, rows: PendingRows, outbox: Outbox, accountant: Accountant) -> None:
        self._estate = estate
        self._rows = rows
        self._outbox = outbox
        self._accountant = accountant

    async def sweep(self) -> None:
        """Take over what there is. What cannot be had, because the ledger or the database is away, stays there."""
        try:
            await self._inherit()
            await self._claim()
        except (LedgerAway, StoreUnavailable) as error:
            log.info("what dead nodes left is looked for again in the next round: %s", error)

    async def _inherit(self) -> None:
        while rows := await self._estate.inherit(AT_ONCE):
            people = [row for row in rows if isinstance(row, User)]
            records = [row for row in rows if isinstance(row, UsageRecord)]
            self._outbox.restore(records, people)
            log.info("%d rows of nodes that stopped are written by this one", len(rows))

    async def _claim(self) -> None:
        # Nobody is known to be alive before the first renewal, not even this node.
        if not self._estate.alive:
            return
        for row in await self._rows.claim_pending(self._estate.alive, AT_ONCE):
            self._accountant.look_after(row)
