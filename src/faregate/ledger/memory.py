"""The in-process engine of the ledger: for one gateway process, without Redis.

No method awaits anything, so each call is one atomic step. A journal, where there is one, is written before
memory changes: what it could not write did not happen.
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import count
from typing import Protocol

from faregate.ledger.baseline import Baseline
from faregate.ledger.books import MINUTE_SECONDS, Book, Sliding, Tally, is_over
from faregate.ledger.fitting import fits, largest_cap, need, refusal
from faregate.ledger.port import (
    AlreadySettled,
    Balance,
    Claim,
    Counter,
    Held,
    Hold,
    Ledger,
    Refused,
    Released,
    Settled,
)
from faregate.ledger.remembered import Remembered
from faregate.policy.model import Window
from faregate.policy.rulebook import Shape
from faregate.records import Facts, UsageRecord, altered

KEPT_AFTER_END = 3600
"""Seconds that a calendar counter outlives its window, for late charges and late readers.

Should the clock be set back to a window that was forgotten, its counters start from the baseline again."""

SLIDING_KEPT = 2
"""Seconds that sliding entries outlive their minute: requests may be judged in another order than they came."""

SETTLED_KEPT = 100_000
"""Settled ids that are known, about 20 MB: many hours of a busy single process, and of its longest request."""

TOMBSTONES_KEPT = 10_000

LOOKED_AT = 16
"""How many counters one `reserve` considers forgetting: more than it can create, so that memory stays flat."""


class EventLog(Protocol):
    """What the engine tells the journal. `held` and `settled` raise when the event cannot be kept."""

    def held(self, hold: Hold) -> None: ...

    def noted(self, request_id: str, generation_id: str) -> None: ...

    def parked(self, request_id: str) -> None: ...

    def settled(self, record: UsageRecord) -> None: ...

    def released(self, request_id: str) -> None: ...


class MemoryLedger(Ledger):
    """Reservations and charges in this process's memory."""

    def __init__(self, baseline: Baseline, journal: EventLog | None = None) -> None:
        self._baseline = baseline
        self._journal = journal
        self._books: dict[Counter, Book] = {}
        self._holds: dict[str, Hold] = {}
        self._exceeded: dict[str, tuple[Counter, ...]] = {}
        self._settled = Remembered(SETTLED_KEPT)
        self._released = Remembered(TOMBSTONES_KEPT)
        self._forgettable: list[tuple[float, int, Counter]] = []
        self._order = count()
        self._now = 0.0

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Nobody but this process teaches it anything."""
        return ()

    async def learn(self, shapes: Iterable[Shape]) -> None:
        """A counter starts from the baseline whenever it is first met: there is nothing to prepare."""

    async def reserve(
        self,
        facts: Facts,
        *,
        node: str,
        lease: float,
        claims: Sequence[Claim],
        cap_wanted: int,
        cap_min: int,
        now: float,
    ) -> Held | Refused:
        """See `Ledger.reserve`. With a journal, raises its error when the hold cannot be kept there."""
        self._now = now
        self._forget(now)
        request_id, at = facts.request_id, facts.admitted_at
        if (live := self._holds.get(request_id)) is not None:
            return Held(live.cap, self._exceeded.get(request_id, ()))
        if request_id in self._released or request_id in self._settled:
            raise Released(f"Request {request_id} is over; it cannot be held again.")
        if any(claim.fixed < 0 or claim.per_output_token < 0 for claim in claims) or cap_wanted < 0:
            raise ValueError(f"Request {request_id} claims a negative amount; amounts are zero or more.")

        balanced = [(claim, self._book_at(claim.counter, at, now).balance(at)) for claim in claims]
        least = min(cap_min, cap_wanted)
        if (refused := refusal(balanced, least)) is not None:
            return self._when_free(refused, at)
        cap = largest_cap(balanced, cap_wanted, least)
        hold = Hold(
            facts=altered(facts, cap=cap),
            node=node,
            expires_at=now + lease,
            cap=cap,
            amounts={claim.counter: need(claim, cap) for claim in claims},
        )
        if self._journal is not None:
            self._journal.held(hold)
        self._take(hold)
        exceeded = tuple(claim.counter for claim, balance in balanced if not fits(claim, balance, cap))
        if exceeded:
            self._exceeded[request_id] = exceeded
        return Held(cap, exceeded)

    async def note(self, request_id: str, generation_id: str) -> None:
        hold = self._holds.get(request_id)
        if hold is None or hold.generation_id == generation_id:
            return
        if self._journal is not None:
            self._journal.noted(request_id, generation_id)
        hold.generation_id = generation_id

    async def park(self, request_id: str) -> None:
        hold = self._holds.get(request_id)
        if hold is None or hold.parked:
            return
        if self._journal is not None:
            self._journal.parked(request_id)
        hold.parked = True
        slots = [counter for counter in hold.amounts if counter.window is None]
        self._give_back(request_id, {slot: hold.amounts.pop(slot) for slot in slots})

    async def settle(
        self, request_id: str, charges: Sequence[tuple[Counter, int]], record: UsageRecord
    ) -> Settled | AlreadySettled:
        """See `Ledger.settle`. With a journal, raises its error when the record cannot be kept there."""
        if request_id in self._settled:
            return AlreadySettled()
        if any(amount < 0 for _, amount in charges):
            raise ValueError(f"Request {request_id} is charged a negative amount; a charge gives nothing back.")
        # Counters that memory does not have start from what records charged before this one.
        at = record.facts.admitted_at
        books = [(self._chargeable(counter, at), amount) for counter, amount in charges]
        if self._journal is not None:
            self._journal.settled(record)
        for book, amount in books:
            if book is not None:
                book.charge(request_id, amount, at)
        self._drop(request_id)
        self._settled.add(request_id)
        return Settled()

    async def release(self, request_id: str, now: float) -> None:
        self._now = now
        if self._journal is not None and request_id in self._holds:
            self._journal.released(request_id)
        self._drop(request_id)
        self._released.add(request_id)

    async def renew(self, node: str, lease: float, now: float) -> None:
        self._now = now
        for hold in self._holds.values():
            if hold.node == node:
                hold.expires_at = max(hold.expires_at, now + lease)

    def lapsed(self, request_id: str) -> bool:
        """Never: nobody else settles on this ledger."""
        return False

    async def expired(self, now: float, limit: int) -> list[Hold]:
        self._now = now
        over = [hold for hold in self._holds.values() if hold.expires_at <= now]
        over.sort(key=lambda hold: (hold.expires_at, hold.facts.admitted_at))
        return [_copy(hold) for hold in over[:limit]]

    async def adopt(self, node: str, lease: float, now: float, limit: int) -> list[Hold]:
        over = await self.expired(now, limit)
        for hold in over:
            kept = self._holds[hold.facts.request_id]
            hold.node = kept.node = node
            hold.expires_at = kept.expires_at = now + lease
        return over

    async def peek(self, counters: Sequence[Counter], now: float) -> list[Balance]:
        # A counter that is only looked at is not kept: anyone may ask about anything.
        return [(self._books.get(counter) or self._first_book(counter, now)).balance(now) for counter in counters]

    def live(self) -> list[Hold]:
        """All live holds, as copies, in the order in which they were taken."""
        return [_copy(hold) for hold in self._holds.values()]

    def restore(self, holds: Iterable[Hold]) -> None:
        """Take on the holds that a journal kept over a restart. Ids that are known here are left alone."""
        for hold in holds:
            request_id = hold.facts.request_id
            if request_id not in self._holds and request_id not in self._settled:
                self._take(_copy(hold))

    def _take(self, hold: Hold) -> None:
        facts = hold.facts
        self._holds[facts.request_id] = hold
        for counter, amount in hold.amounts.items():
            self._book(counter, facts.admitted_at).hold(facts.request_id, amount, facts.admitted_at)

    def _drop(self, request_id: str) -> None:
        hold = self._holds.pop(request_id, None)
        if hold is not None:
            self._exceeded.pop(request_id, None)
            self._give_back(request_id, hold.amounts)

    def _give_back(self, request_id: str, amounts: dict[Counter, int]) -> None:
        for counter, amount in amounts.items():
            # A sliding minute may be over, and forgotten, before its request is.
            if (book := self._books.get(counter)) is not None:
                book.give_back(request_id, amount)

    def _when_free(self, refused: Refused, at: float) -> Refused:
        book = self._books[refused.counter]
        if not isinstance(book, Sliding):
            return refused
        return replace(refused, frees_at=book.frees_at(at, refused.limit - refused.needed))

    def _book(self, counter: Counter, at: float) -> Book:
        book = self._books.get(counter)
        if book is None:
            book = self._books[counter] = self._first_book(counter, at)
            if counter.ends:
                self._forget_at(counter.ends + KEPT_AFTER_END, counter)
            elif counter.window is not Window.TOTAL:
                self._forget_at(at + MINUTE_SECONDS + SLIDING_KEPT, counter)
        elif isinstance(book, Sliding):
            book.forget(at - SLIDING_KEPT)
        return book

    def _book_at(self, counter: Counter, at: float, now: float) -> Book:
        book = self._book(counter, at)
        if isinstance(book, Sliding):
            book.forget_ahead(now)
        return book

    def _first_book(self, counter: Counter, at: float) -> Book:
        if counter.window is None:
            return Tally(0)
        if counter.window is Window.MINUTE:
            return Sliding(self._baseline.recent(counter, at - MINUTE_SECONDS))
        return Tally(self._baseline.used(counter))

    def _chargeable(self, counter: Counter, at: float) -> Book | None:
        """The book that a charge admitted at `at` goes to; None where nothing reads it any more."""
        if counter.window is None:
            return None
        if (book := self._books.get(counter)) is not None:
            return book
        if counter.window is Window.MINUTE:
            over = is_over(at, self._now - SLIDING_KEPT)
        else:
            over = 0 < counter.ends <= self._now - KEPT_AFTER_END
        return None if over else self._book(counter, at)

    def _forget_at(self, due: float, counter: Counter) -> None:
        heapq.heappush(self._forgettable, (due, next(self._order), counter))

    def _forget(self, now: float) -> None:
        """Drop some of the counters whose time is over and that no live hold is on."""
        for _ in range(LOOKED_AT):
            if not self._forgettable or self._forgettable[0][0] > now:
                return
            _, _, counter = heapq.heappop(self._forgettable)
            book = self._books[counter]
            if isinstance(book, Sliding):
                book.forget(now - SLIDING_KEPT)
                book.forget_ahead(now)
                in_use = not book.is_empty()
            else:
                in_use = book.holds > 0
            if in_use:
                self._forget_at(now + MINUTE_SECONDS, counter)
            else:
                del self._books[counter]


def _copy(hold: Hold) -> Hold:
    return replace(hold, amounts=dict(hold.amounts))
