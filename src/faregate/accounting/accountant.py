"""Brings each request to its one record and its charges: settled, refused, or parked until its cost is known."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

from faregate.accounting.clock import Clock, SystemClock
from faregate.accounting.figures import ended, orphan, pending_row
from faregate.accounting.outbox import Outbox
from faregate.accounting.spend import Spend, charge_of
from faregate.ledger.counters import counters_for
from faregate.ledger.journal import JournalError
from faregate.ledger.port import AlreadySettled, Counter, Hold, Ledger
from faregate.policy.model import Meter
from faregate.policy.rulebook import Rulebook, Shape
from faregate.policy.windows import Calendar
from faregate.records import Status, UsageRecord

TAKEN_OVER_AT_ONCE = 500
"""Holds of dead nodes that one round takes over."""

log = logging.getLogger(__name__)


class Later(Protocol):
    """Who settles what cannot be settled now: the reconciler."""

    def ask_later(self, record: UsageRecord) -> None:
        """Find out what `record` cost, then settle it. Its status is how the request ended."""
        ...

    def settle_later(self, record: UsageRecord) -> None:
        """Settle `record`, whose figures are final, as soon as the ledger takes it."""
        ...

    def __contains__(self, request_id: str) -> bool:
        """Whether this request is being looked after."""
        ...

    def __len__(self) -> int:
        """How many requests are being looked after."""
        ...


class Accountant:
    """The books of this node: the ledger's counters, the sums they start from, and the way to the database."""

    def __init__(
        self,
        ledger: Ledger,
        spend: Spend,
        outbox: Outbox,
        later: Later,
        calendar: Calendar,
        rulebook: Callable[[], Rulebook],
        *,
        clock: Clock | None = None,
    ) -> None:
        self._ledger = ledger
        self._spend = spend
        self._outbox = outbox
        self._later = later
        self._calendar = calendar
        self._rulebook = rulebook
        self._clock = clock or SystemClock()
        self._learned: Rulebook | None = None
        self._shapes: dict[Shape, None] = {}
        self.shapes()

    async def settle(self, record: UsageRecord) -> bool:
        """Charge `record` and send it on its way to the database; whether this call did so.

        False when it was settled before, and when the journal cannot be written: then its hold stays, and it is
        settled as soon as that is possible.
        """
        try:
            return await self.charge(record)
        except JournalError as error:
            log.error("request %s is settled later: %s", record.facts.request_id, error)  # noqa: TRY400
            self._later.settle_later(record)
            return False

    async def charge(self, record: UsageRecord) -> bool:
        """Like `settle`, but raises `JournalError` when the journal cannot be written; nothing has changed then.

        Raises ValueError for a record that is not final.
        """
        if record.status is Status.PENDING or record.cost is None:
            raise ValueError(f"request {record.facts.request_id} has no final figures yet; it cannot be charged")
        settled = await self._ledger.settle(record.facts.request_id, self._charges(record), record)
        if isinstance(settled, AlreadySettled):
            return False
        # After the ledger, never before: a counter that it meets for the first time starts from these sums.
        self._spend.add(record, self._clock.time())
        self._outbox.add_record(record)
        return True

    def refuse(self, record: UsageRecord) -> None:
        """Keep the record of a request that was refused. It charges nothing."""
        self._outbox.add_record(record)

    async def park(self, record: UsageRecord) -> None:
        """The request is over, its cost is not known. `record` has the status with which it ended.

        Its parallel slots are free at once; the rest stays held until its cost is found out, or estimated.
        """
        await self._ledger.park(record.facts.request_id)
        self._outbox.add_record(pending_row(record))
        self._later.ask_later(record)

    async def recover(self, holds: Iterable[Hold], rows: Iterable[UsageRecord]) -> None:
        """Take over what an earlier process left: `holds` of its journal, pending `rows` of the database.

        To be called when the records of the journal are in the database and the ledger has its holds back.
        """
        left = {row.facts.request_id: row for row in rows}
        for hold in holds:
            await self._adopt(hold, left.pop(hold.facts.request_id, None))
        for row in left.values():
            self._later.ask_later(ended(row))

    async def take_over(self, now: float) -> None:
        """Take over holds whose node stopped renewing them by `now` (epoch seconds)."""
        # Those that are being looked after are still among the expired: they must not hide the others.
        for hold in await self._ledger.expired(now, TAKEN_OVER_AT_ONCE + len(self._later)):
            if hold.facts.request_id not in self._later:
                await self._adopt(hold, None)

    def shapes(self) -> Iterable[Shape]:
        """The shapes of limits that requests are held and charged on: those of this moment's rules, and all before.

        A shape stays when no rule has it any more: the ledger may still have its counters, and a rule that comes back
        must find on them what was spent meanwhile.
        """
        rulebook = self._rulebook()
        if rulebook is not self._learned:
            self._learned = rulebook
            self._shapes.update(dict.fromkeys(rulebook.shapes))
        return self._shapes

    def _charges(self, record: UsageRecord) -> list[tuple[Counter, int]]:
        facts = record.facts
        counters = counters_for(
            self.shapes(),
            self._calendar,
            user_id=facts.user_id,
            groups=facts.groups,
            models=record.counted_models(),
            at=facts.admitted_at,
        )
        return [
            (counter, charge_of(record, counter.meter)) for counter in counters if counter.meter is not Meter.CONCURRENT
        ]

    async def _adopt(self, hold: Hold, row: UsageRecord | None) -> None:
        # Its counters are in the ledger, whatever the rules are now: see `shapes`.
        self._shapes.update(
            (Shape(counter.scope, counter.meter, counter.window, counter.models), None) for counter in hold.amounts
        )
        if row is None:
            await self.park(orphan(hold))
            return
        await self._ledger.park(hold.facts.request_id)
        known = ended(row)
        self._later.ask_later(replace(known, facts=hold.facts, generation_id=known.generation_id or hold.generation_id))
