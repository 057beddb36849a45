"""What the counters of a shared ledger start from: each record of the database, on the counters it was charged to."""

import asyncio
from collections import Counter as Sums
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from faregate.accounting.spend import Amounts
from faregate.ledger.books import MINUTE_SECONDS, is_ahead, is_over
from faregate.ledger.counters import counters_for
from faregate.ledger.port import Counter
from faregate.ledger.seeds import Records, RecordsAway, Seed
from faregate.policy.model import Scope, Window
from faregate.policy.rulebook import Shape
from faregate.policy.windows import Calendar
from faregate.store.errors import StoreUnavailable
from faregate.store.usage import PAYER, ChargedRow, Payer, SpendRow

AROUND = (-MINUTE_SECONDS, 0, MINUTE_SECONDS)
"""Seconds from now to the moments whose windows are live: the clocks of nodes differ."""

ROWS_AT_ONCE = 500
"""Rows that are added up before requests get their turn."""


class EraSource(Protocol):
    """The sums of the database by era: the store. All of it raises `StoreUnavailable` while the database is away."""

    async def next_era(self, above: int) -> int:
        """Begin a new era; its number, more than `above`."""
        ...

    async def spend(
        self,
        since: float,
        until: float | None = None,
        before_era: int | None = None,
        by: Collection[Payer] = PAYER,
    ) -> list[SpendRow]:
        """What was charged, in eras before `before_era`, to requests admitted from `since` to `until`, summed.

        What is not in `by` is not told apart.
        """
        ...

    async def recent(self, since: float, before_era: int | None = None) -> list[ChargedRow]:
        """Every charge, in eras before `before_era`, to requests admitted since then (epoch seconds)."""
        ...


class StoredRecords(Records):
    """The records of the database. The counters of each are found as they are when it is settled."""

    def __init__(self, store: EraSource, calendar: Calendar) -> None:
        self._store = store
        self._calendar = calendar

    async def next_era(self, above: int) -> int:
        """See `Records.next_era`."""
        with _reported():
            return await self._store.next_era(above)

    async def charged(self, shapes: Iterable[Shape], era: int, now: float) -> list[Seed]:
        """See `Records.charged`."""
        with _reported():
            return await self._charged(shapes, era, now)

    async def _charged(self, shapes: Iterable[Shape], era: int, now: float) -> list[Seed]:
        sliding: list[Shape] = []
        calendar: dict[tuple[Window, bool], list[Shape]] = {}
        for shape in shapes:
            if shape.window is Window.MINUTE:
                sliding.append(shape)
            elif shape.window is not None:
                # Apart: what is limited by model is told apart by model, of which each person uses several.
                calendar.setdefault((shape.window, bool(shape.models)), []).append(shape)
        seeds = await self._sliding(sliding, era, now) if sliding else []
        for (window, _), about in calendar.items():
            by = _told_apart(about)
            for starts, ends in dict.fromkeys(self._calendar.bounds(window, now + off) for off in AROUND):
                rows = await self._store.spend(starts, ends or None, before_era=era, by=by)
                seeds += await self._sums(rows, about, starts)
        return seeds

    async def _sums(self, rows: Sequence[SpendRow], shapes: list[Shape], at: float) -> list[Seed]:
        sums = Sums[Counter]()
        for number, row in enumerate(rows, start=1):
            for counter, amount in self._charges(row, shapes, at):
                sums[counter] += amount
            if number % ROWS_AT_ONCE == 0:
                await asyncio.sleep(0)
        return [Seed(counter, amount) for counter, amount in sums.items()]

    async def _sliding(self, shapes: list[Shape], era: int, now: float) -> list[Seed]:
        earliest, latest = now + AROUND[0], now + AROUND[-1]
        return [
            Seed(counter, amount, row.request_id, row.admitted_at)
            for row in await self._store.recent(earliest - MINUTE_SECONDS, before_era=era)
            if not is_over(row.admitted_at, earliest) and not is_ahead(row.admitted_at, latest)
            for counter, amount in self._charges(row, shapes, row.admitted_at)
        ]

    def _charges(self, row: SpendRow | ChargedRow, shapes: list[Shape], at: float) -> Iterator[tuple[Counter, int]]:
        amounts = Amounts(row.requests, row.tokens, row.nano)
        counters = counters_for(
            shapes, self._calendar, user_id=row.user_id, groups=row.groups, models=row.models, at=at
        )
        for counter in counters:
            if amount := amounts.of(counter.meter):
                yield counter, amount


def _told_apart(shapes: Iterable[Shape]) -> set[Payer]:
    """By what charges have to be told apart to be on the counters of `shapes`."""
    by: set[Payer] = set()
    for shape in shapes:
        if shape.scope is Scope.USER:
            by.add("user_id")
        elif shape.scope is Scope.GROUP:
            by.add("groups")
        if shape.models:
            by.add("models")
    return by


@contextmanager
def _reported() -> Iterator[None]:
    """The ledger knows of records, not of databases."""
    try:
        yield
    except StoreUnavailable as error:
        raise RecordsAway(str(error)) from error
