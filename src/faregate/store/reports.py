"""Reports: sums of what `rollups` has added up."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, Subquery, func, literal, select, text, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from faregate.store.chunks import chunks
from faregate.store.rollups import SUMMED, By
from faregate.store.spans import DAY, HOUR, Stretch, ceiling, fewest, floor, stretches
from faregate.store.tables import stale_hours, usage_sums
from faregate.store.types import Instant

_SETTINGS = (
    # All that a report is made of is of one moment, as it is on SQLite anyway.
    text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"),
    # With its usual 4 MB it would sort on the disk to add up what many people used.
    text("SET LOCAL work_mem = '64MB'"),
    # Compiling these statements takes longer than running them, and so does bringing together what several processes
    # have added up, as hardly two rows have the same key.
    text("SET LOCAL jit = off"),
    text("SET LOCAL max_parallel_workers_per_gather = 0"),
)
"""PostgreSQL: what holds for the transaction of a report."""

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
    if connection.dialect.name == "postgresql":
        for setting in _SETTINGS:
            await connection.execute(setting)
    lacking, first, last = (await connection.execute(_known(since, until))).one()
    rows: list[ReportRow] = []
    if since < until and first is not None and (parts := fewest(since, until, (first, last + HOUR))):
        keys = list(await connection.scalars(_top(by, parts, limit)))
        if every is not None:
            rows = await _series(connection, by, since, until, every, keys)
        else:
            # The dearest are in the first part, so that all are in their order.
            for some in chunks(keys):
                rows += [_report_row(row) for row in await connection.execute(_in_all(by, parts, some))]
    return Report(since, until, lacking, tuple(rows))


def _known(since: float, until: float) -> Select[Any]:
    """How many hours of this time are stale; the first and the last hour that there are sums of."""
    lacking = select(func.count()).where(stale_hours.c.hour >= since, stale_hours.c.hour < until)
    hours = (_sum.kind == By.ALL.value, _sum.hours == 1)
    # Each for itself: PostgreSQL then looks at both ends of the key, and at nothing between them.
    ends = (select(end(_sum.start)).where(*hours) for end in (func.min, func.max))
    return select(*(each.scalar_subquery() for each in (lacking, *ends)))


async def _series(
    connection: AsyncConnection, by: By, since: float, until: float, every: Every, keys: Sequence[str]
) -> list[ReportRow]:
    rows: list[ReportRow] = []
    for stretch in stretches(since, until, (1, 24) if every is Every.DAY else (1,)):
        for starts in chunks(stretch.starts()):
            spans = _spans(by, stretch.hours, starts).where(_sum.key.in_(keys))
            if every is Every.HOUR or stretch.hours > 1:
                # Each row is one of the report. Added up, even by itself, PostgreSQL would make it NUMERIC, which takes
                # the driver longer to read than all else.
                statement = spans.order_by(_sum.start, _sum.cost.desc(), _sum.requests.desc(), _sum.key)
            else:
                # Single hours are at the edges alone, so those of one stretch are of one day.
                statement = _added_up(spans.subquery(), floor(stretch.since, DAY))
            rows += [_report_row(row) for row in await connection.execute(statement)]
    return rows


def _top(by: By, parts: Iterable[Stretch], limit: int) -> Select[Any]:
    """The dearest keys. Adding up all columns for every key would take several times as long."""
    pieces = union_all(
        *(
            select(_sum.key, *_signed(part, ("cost", "requests", "refused"))).where(
                _sum.kind == by.value, _sum.hours == part.hours, _sum.start >= part.since, _sum.start < part.until
            )
            for part in parts
        )
    ).subquery()
    # Who is in a long span alone, outside of the time, has nothing left.
    is_there = func.sum(pieces.c.requests) + func.sum(pieces.c.refused) > 0
    return select(pieces.c.key).group_by(pieces.c.key).having(is_there).order_by(*_dearest(pieces)).limit(limit)


def _in_all(by: By, parts: Iterable[Stretch], keys: Sequence[str]) -> Select[Any]:
    pieces = union_all(
        *(
            _spans(by, part.hours, starts).with_only_columns(_sum.key, *_signed(part, SUMMED))
            for part in parts
            for starts in chunks(part.starts())
        )
    ).subquery()
    return _added_up(pieces, None).where(pieces.c.key.in_(keys))


def _spans(by: By, hours: int, starts: Sequence[float]) -> Select[Any]:
    # Named one by one, not by their range: of each span, only the rows of the keys that are asked for are looked at.
    at = (_sum.kind == by.value, _sum.hours == hours, _sum.start.in_(starts))
    return select(_sum.start, _sum.key, *(_sum[name] for name in SUMMED)).where(*at)


def _signed(part: Stretch, names: Iterable[str]) -> Iterator[ColumnElement[Any]]:
    return ((_sum[name] if part.sign > 0 else -_sum[name]).label(name) for name in names)


def _added_up(pieces: Subquery, start: float | None) -> Select[Any]:
    totals = (func.sum(pieces.c[name]).label(name) for name in SUMMED)
    statement = select(literal(start, Instant()).label("start"), pieces.c.key, *totals)
    return statement.group_by(pieces.c.key).order_by(*_dearest(pieces))


def _dearest(pieces: Subquery) -> tuple[ColumnElement[Any], ...]:
    return func.sum(pieces.c.cost).desc(), func.sum(pieces.c.requests).desc(), pieces.c.key


def _report_row(row: Any) -> ReportRow:
    start, key, requests, refused, failed, prompt, completion, total, cost = row
    # PostgreSQL adds BIGINT up to NUMERIC.
    return ReportRow(
        start, key, int(requests), int(refused), int(failed), int(prompt), int(completion), int(total), cost
    )
