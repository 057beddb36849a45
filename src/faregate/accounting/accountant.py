"""Brings each request to its one record and its charges: settled, refused, or parked until its cost is known."""

import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from faregate.accounting.clock import Clock, SystemClock
from faregate.accounting.figures import ended, orphan, pending_row, unsettled_row
from faregate.accounting.finals import Finals
from faregate.accounting.outbox import Outbox
from faregate.accounting.spend import Charging
from faregate.ledger.counters import Concerned
from faregate.ledger.forms import Charges
from faregate.ledger.port import AlreadySettled, Counter, Hold, Ledger, LedgerAway, Settled, ShapesChanged
from faregate.policy.rulebook import Rulebook, Shape
from faregate.policy.windows import Calendar
from faregate.records import Status, UsageRecord, altered

TAKEN_OVER_AT_ONCE = 500
"""Holds of dead nodes that one round takes over."""

log = logging.getLogger(__name__)


class Later(Protocol):
    """Who settles what cannot be settled now: the reconciler."""

    def ask_later(self, record: UsageRecord, *, others_first: bool = False) -> None:
        """Find out what `record` cost, then settle it. Its status is how the request ended.

        With `others_first` not before another node, which may know what it cost, had the time to settle it.
        """
        ...

    def settle_later(self, record: UsageRecord) -> None:
        """Settle `record`, whose figures are final, as soon as the ledger takes it: it did not just now."""
        ...

    def settle_now(self, record: UsageRecord) -> None:
        """Settle `record`, whose figures are final, at once, and again until the ledger takes it."""
        ...

    def __contains__(self, request_id: str) -> bool:
        """Whether this request is being looked after."""
        ...


class Sums(Protocol):
    """Who adds up what was settled."""

    def add(self, record: UsageRecord, now: float) -> None:
        """Count a record that was settled at `now` (epoch seconds)."""
        ...


class Accountant:
    """The books of this node: the ledger's counters, the sums they start from, and the way to the database."""

    def __init__(
        self,
        ledger: Ledger,
        spend: Sums,
        outbox: Outbox,
        later: Later,
        calendar: Calendar,
        rulebook: Callable[[], Rulebook],
        *,
        finals: Finals | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`finals` is there where the ledger is shared: another node may have settled what this one wants to."""
        self._ledger = ledger
        self._spend = spend
        self._outbox = outbox
        self._later = later
        self._concerned = Concerned(calendar)
        self._charging = Charging()
        self._rulebook = rulebook
        self._finals = finals
        self._clock = clock or SystemClock()
        self._learned: Rulebook | None = None
        self._taught: Iterable[Shape] | None = None
        self._shapes: tuple[Shape, ...] = ()
        self.shapes()

    async def settle(self, record: UsageRecord) -> bool:
        """Charge `record` and send it on its way to the database; whether this call did so.

        False when it was settled before, and while the ledger is away: then its hold stays, and it is settled as soon
        as that is possible. Where the ledger is shared it waits for this in the database too, as a pending row. So it
        does when this node was taken for dead: another may have settled it, in counters that are gone since.
        """
        if self._finals is not None and self._ledger.lapsed(record.facts.request_id):
            self._outbox.add_record(unsettled_row(record))
            self._later.settle_now(record)
            return False
        try:
            return await self.charge(record)
        except LedgerAway as error:
            log.error("request %s is settled later: %s", record.facts.request_id, error)  # noqa: TRY400
            self._later.settle_later(record)
            if self._finals is not None:
                self._outbox.add_record(unsettled_row(record))
            return False

    async def charge(self, record: UsageRecord) -> bool:
        """Like `settle`, but raises `LedgerAway` while the ledger is away: `record` may be charged then, or not.

        Raises ValueError for a record that is not final.
        """
        while True:
            try:
                settled = await self._ledger.settle(record.facts.request_id, self._charges(record), record)
            except ShapesChanged:
                continue
            return self._charged(record, settled)

    async def charge_late(self, record: UsageRecord) -> bool:
        """Like `charge`, long after the request: another node may have settled it, under an earlier ledger perhaps.

        A request that has its final record in the database is not charged again; what is held for it is released.
        Raises `StoreUnavailable` too, where the ledger is shared.
        """
        if self._finals is None:
            return await self.charge(record)
        while True:
            taught = self._ledger.shapes
            if await self._finals.has(record.facts.request_id):
                await self._ledger.release(record.facts.request_id, self._clock.time())
                await self._outbox.known(record)
                return False
            # A ledger that began anew meanwhile may have begun with the record of somebody who was faster.
            if self._ledger.shapes is not taught:
                continue
            try:
                settled = await self._ledger.settle(record.facts.request_id, self._charges(record), record)
            except ShapesChanged:
                continue
            return self._charged(record, settled)

    def recharge(self, record: UsageRecord) -> None:
        """Charge `record` again: the era in which it was charged ended before the database had it.

        The ledger knows what of it is on no counter.
        """
        self._later.settle_now(record)

    def refuse(self, record: UsageRecord) -> None:
        """Keep the record of a request that was refused. It charges nothing."""
        self._outbox.add_record(record)

    async def park(self, record: UsageRecord) -> None:
        """The request is over, its cost is not known. `record` has the status with which it ended.

        Its parallel slots are free at once; the rest stays held until its cost is found out, or estimated.
        """
        self._outbox.add_record(pending_row(record))
        self._later.ask_later(record)
        if record.generation_id is not None:
            # An answer that came at once is not noted before its end: whoever inherits the hold has to know.
            await self._ledger.note(record.facts.request_id, record.generation_id)
        await self._ledger.park(record.facts.request_id)

    async def recover(self, holds: Iterable[Hold], rows: Iterable[UsageRecord]) -> None:
        """Take over what an earlier process left: `holds` of its journal, pending `rows` of the database.

        To be called when the records of the journal are in the database and the ledger has its holds back.
        """
        left = {row.facts.request_id: row for row in rows}
        for hold in holds:
            await self._adopt(hold, left.pop(hold.facts.request_id, None))
        for row in left.values():
            self.look_after(row)

    def look_after(self, row: UsageRecord) -> None:
        """See to it that a pending `row` of the database, which nobody else looks after, becomes a final one."""
        record = ended(row)
        if record.cost is None:
            self._later.ask_later(record)
        else:
            self._later.settle_now(record)

    async def take_over(self, node: str, lease: float, now: float) -> None:
        """Let `node`, this one, have the holds whose nodes stopped renewing them by `now` (epoch seconds).

        They are leased for `lease` seconds more.
        """
        for hold in await self._ledger.adopt(node, lease, now, TAKEN_OVER_AT_ONCE):
            await self._adopt(hold, None)

    def counters(
        self, user_id: str, groups: tuple[str, ...], models: tuple[str, ...], at: float
    ) -> tuple[Counter, ...]:
        """The counters that requests of this person for these models are held and charged on: see `shapes`.

        `at` is when the request was admitted (epoch seconds). The same object for as long as nothing changes.
        """
        return self._concerned.by(self.shapes(), user_id, groups, models, at)

    def shapes(self) -> tuple[Shape, ...]:
        """The shapes of limits that requests are held and charged on: those of this moment's rules, and all before.

        A shape stays when no rule has it any more: the ledger may still have its counters, and a rule that comes back
        must find on them what was spent meanwhile. So do those that other nodes have taught the ledger.
        """
        rulebook, taught = self._rulebook(), self._ledger.shapes
        if rulebook is not self._learned:
            self._learned = rulebook
            self._also(rulebook.shapes)
        if taught is not self._taught:
            self._taught = taught
            self._also(taught)
        return self._shapes

    def _also(self, shapes: Iterable[Shape]) -> None:
        known = dict.fromkeys((*self._shapes, *shapes))
        if len(known) > len(self._shapes):
            self._shapes = tuple(known)

    def _charges(self, record: UsageRecord) -> Charges:
        # In one step with the call: the ledger compares these shapes with its own.
        facts = record.facts
        if record.status is Status.PENDING or record.cost is None:
            raise ValueError(f"request {facts.request_id} has no final figures yet; it cannot be charged")
        models = record.counted_models()
        counters = self.counters(facts.user_id, facts.groups, models, facts.admitted_at)
        return self._charging.charges(record, models, counters)

    def _charged(self, record: UsageRecord, settled: Settled | AlreadySettled) -> bool:
        """See to what follows from the ledger's answer; whether `record` was settled now."""
        if isinstance(settled, AlreadySettled):
            if record.era:
                # Somebody else's record is on its way. This one is kept until the database has either.
                self._later.settle_later(record)
            return False
        if settled.era != record.era:
            record = altered(record, era=settled.era)
        # After the ledger, never before: a counter that it meets for the first time starts from these sums.
        self._spend.add(record, self._clock.time())
        self._outbox.add_record(record)
        return True

    async def _adopt(self, hold: Hold, row: UsageRecord | None) -> None:
        # Its counters are in the ledger, whatever the rules are now: see `shapes`.
        self._also(Shape(counter.scope, counter.meter, counter.window, counter.models) for counter in hold.amounts)
        if row is not None:
            known = row.generation_id or hold.generation_id
            self.look_after(altered(row, facts=hold.facts, generation_id=known))
        elif hold.facts.request_id not in self._later:
            left = orphan(hold)
            is_shared = self._finals is not None
            # A shared ledger keeps all that is known here. A row could replace one that knows more.
            if not is_shared:
                self._outbox.add_record(pending_row(left))
            self._later.ask_later(left, others_first=is_shared)
        await self._ledger.park(hold.facts.request_id)
