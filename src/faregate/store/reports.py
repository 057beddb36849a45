"""Reports: sums of what `rollups` has added up."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, Subquery, func, literal, select, text, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from faregate.store.chunks import chunks
from faregate.store.rollups import SUMMED, By
from faregate.store.spans import DAY, HOUR, Stretch, ceiling, floor, stretches
from faregate.store.tables import stale_hours, usage_sums
from faregate.store.types import Instant

_ENOUGH_MEMORY = text("SET LOCAL work_mem = '64MB'")
"""PostgreSQL: with its usual 4 MB it would sort on the disk to add up what many people used."""

_sum = usage_sums.c


class Every(StrEnum):
    """The steps of a series: hours, or days of UTC."""

    HOUR = "hour"
    DAY = "day"


@dataclass(frozen=True, slots=True)
class ReportRow:
    """The sums of one key; in a series those of one step, which begins at `start` (epoch seconds), else None.

    `requests` are those that were admitted and are final, `failed` those of them that failed; `refused` are beside
    them. `cost` is in dollars.
    """

    start: float | None
    key: str
    requests: int
    refused: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cost: Decimal


@dataclass(frozen=True, slots=True)
class Report:
    """The sums of the whole hours from `since` up to but without `until` (epoch seconds).

    `stale_hours` of them have records that are not in the sums yet.
    """

    since: float
    until: float
    stale_hours: int
    rows: tuple[ReportRow, ...]


async def report(
    connection: AsyncConnection, by: By, since: float, until: float, every: Every | None, limit: int
) -> Report:
    """The sums of at most `limit` keys, dearest first, over all hours that are in part between `since` and `until`.

    With `every` a series: for each step those of the same keys that have something in it, the steps in their order.
    """
    since, until = floor(since, HOUR), ceiling(until, HOUR)
    # Before the sums: what is added up meanwhile is then called stale, and not the other way round.
    in_range = (stale_hours.c.hour >= since, stale_hours.c.hour < until)
    lacking = await connection.scalar(select(func.count()).select_from(stale_hours).where(*in_range))
    if connection.dialect.name == "postgresql":
        await connection.execute(_ENOUGH_MEMORY)
    rows: list[ReportRow] = []
    if since < until:
        top = [_report_row(row) for row in await connection.execute(_top(by, since, until, limit))]
        rows = top if every is None else await _series(connection, by, since, until, every, [row.key for row in top])
    return Report(since, until, int(lacking or 0), tuple(rows))


async def _series(
    connection: AsyncConnection, by: By, since: float, until: float, every: Every, keys: Sequence[str]
) -> list[ReportRow]:
    rows: list[ReportRow] = []
    for hours, start, starts in _steps(since, until, every):
        for some in chunks(starts):
            # Named one by one, not by their range: of each step, only the rows of these keys are looked at.
            at = (_sum.kind == by.value, _sum.hours == hours, _sum.start.in_(some), _sum.key.in_(keys))
            parts = select(start.label("start"), *_of_key()).where(*at).subquery()
            statement = (
                select(parts.c.start, parts.c.key, *_totals(parts))
                .group_by(parts.c.start, parts.c.key)
                .order_by(parts.c.start, *_dearest(parts))
            )
            rows += [_report_row(row) for row in await connection.execute(statement)]
    return rows


def _steps(since: float, until: float, every: Every) -> Iterator[tuple[int, ColumnElement[float], list[float]]]:
    """The spans that make up the steps, in their order: their hours, the start of their step, their beginnings."""
    if every is Every.HOUR:
        yield 1, _sum.start, Stretch(1, since, until).starts()
        return
    for stretch in stretches(since, until, (1, 24)):
        # Single hours are at the edges alone, so those of one stretch are of one day.
        start = _sum.start if stretch.hours == 24 else literal(floor(stretch.since, DAY), Instant())
        yield stretch.hours, start, stretch.starts()


def _top(by: By, since: float, until: float, limit: int) -> Select[Any]:
    parts = union_all(
        *(
            select(*_of_key()).where(
                _sum.kind == by.value,
                _sum.hours == stretch.hours,
                _sum.start >= stretch.since,
                _sum.start < stretch.until,
            )
            for stretch in stretches(since, until)
        )
    ).subquery()
    nothing = literal(None, Instant()).label("start")
    return select(nothing, parts.c.key, *_totals(parts)).group_by(parts.c.key).order_by(*_dearest(parts)).limit(limit)


def _of_key() -> list[ColumnElement[Any]]:
    return [_sum.key, *(_sum[name] for name in SUMMED)]


def _totals(parts: Subquery) -> list[ColumnElement[Any]]:
    return [func.sum(parts.c[name]).label(name) for name in SUMMED]


def _dearest(parts: Subquery) -> tuple[ColumnElement[Any], ...]:
    return func.sum(parts.c.cost).desc(), func.sum(parts.c.requests).desc(), parts.c.key


def _report_row(row: Any) -> ReportRow:
    start, key, requests, refused, failed, prompt, completion, total, cost = row
    # PostgreSQL adds BIGINT up to NUMERIC.
    return ReportRow(
        start, key, int(requests), int(refused), int(failed), int(prompt), int(completion), int(total), cost
    )
