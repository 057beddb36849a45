"""What usage records add up to, kept up to date hour by hour, and in longer spans that are made of whole hours.

Who writes a record marks its hour as stale, at the end of the same transaction. So an hour that is not marked is exact;
one that is lacks only what was written since it was added up. The longer spans are what their hours are.
"""

from collections.abc import Iterator
from decimal import Decimal
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Insert,
    Select,
    String,
    Text,
    cast,
    delete,
    func,
    literal,
    literal_column,
    or_,
    select,
    union_all,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from faregate.records import Status
from faregate.store.errors import StillStale
from faregate.store.spans import HOUR, SPANS, floor
from faregate.store.tables import meta, stale_hours, usage_records, usage_sums
from faregate.store.types import Instant, Money
from faregate.store.upsert import add_up, upsert

RECORDS_SINCE = "records_since"
"""In `meta`: from when on (epoch seconds) all records are there. Retention has deleted earlier ones."""

SUMMED = ("requests", "refused", "failed", "prompt_tokens", "completion_tokens", "total_tokens", "cost")
"""The columns of `usage_sums` that are sums."""

_NOTHING = literal(Decimal(0), Money())

_sum = usage_sums.c


class By(StrEnum):
    """What sums are by: `all` is everything in one. `model` is the one that was asked for."""

    ALL = "all"
    USER = "user"
    MODEL = "model"
    GROUP = "group"
    TASK = "task"
    CONNECTION = "connection"


async def stale(connection: AsyncConnection, limit: int, after: float) -> list[float]:
    """The beginnings of at most `limit` hours after `after` that are to be added up, oldest first (epoch seconds)."""
    statement = select(stale_hours.c.hour).where(stale_hours.c.hour > after).order_by(stale_hours.c.hour).limit(limit)
    return list(await connection.scalars(statement))


async def refresh(connection: AsyncConnection, hour: float) -> bool:
    """Add up the hour that begins at `hour` (epoch seconds), and what is made of it; False if that was not due.

    The caller sees to it that nobody else does so at the same time.
    """
    # This waits for every writer that has marked the hour and has not committed. One that comes later waits at the
    # mark for us, and marks the hour anew. So all statements from here on see the same records of this hour.
    marked = await connection.execute(delete(stale_hours).where(stale_hours.c.hour == hour))
    if marked.rowcount == 0 or hour < await records_since(connection) or not await _has_records(connection, hour):
        # The records of an hour may have been deleted, all or some: what they added up to stays true.
        return False
    await connection.execute(_add_changes(connection, hour))
    return True


async def records_since(connection: AsyncConnection) -> float:
    """From when on (epoch seconds) all records are there; what is older may be deleted."""
    value = await connection.scalar(select(meta.c.value).where(meta.c.key == RECORDS_SINCE))
    return 0.0 if value is None else float(value)


async def freeze(connection: AsyncConnection, before: float) -> None:
    """Say that this transaction has deleted the records before `before` (epoch seconds), all or some.

    Raises `StillStale`, and none may be deleted, while one of these hours is not added up.
    """
    if await connection.scalar(select(stale_hours.c.hour).where(stale_hours.c.hour < before).limit(1)) is not None:
        raise StillStale
    if before > await records_since(connection):
        statement = upsert(connection, meta, key=("key",), update=("value",))
        await connection.execute(statement, [{"key": RECORDS_SINCE, "value": repr(float(before))}])


def _add_changes(connection: AsyncConnection, hour: float) -> Insert:
    """Add, to every span that the hour is in, what the sums of the hour are more than they were.

    So only what has changed is written, however many people there are; and one statement sees one state.
    """
    known = (_sum.kind.in_([by.value for by in By]), _sum.hours == 1, _sum.start == hour)
    was = select(_sum.kind, _sum.key, *((-_sum[name]).label(name) for name in SUMMED)).where(*known)
    both = union_all(*_sums_of_hour(hour, connection.dialect.name), was).subquery()
    more = {name: func.sum(both.c[name]) for name in SUMMED}
    changed = (
        select(both.c.kind, both.c.key, *(total.label(name) for name, total in more.items()))
        .group_by(both.c.kind, both.c.key)
        .having(or_(*(total != (_NOTHING if name == "cost" else 0) for name, total in more.items())))
        .cte("changed")
    )
    every_span = union_all(
        *(
            # Without a condition SQLite would read the ON of what follows as that of a join.
            select(literal(hours).label("hours"), _instant(floor(hour, hours * HOUR)).label("start"), *changed.c).where(
                literal_column("1 = 1")
            )
            for hours in SPANS
        )
    )
    names = ["hours", "start", "kind", "key", *SUMMED]
    return add_up(connection, usage_sums, names, every_span, key=("kind", "hours", "start", "key"))


def _sums_of_hour(hour: float, dialect: str) -> Iterator[Select[Any]]:
    """What the records of the hour add up to, by kind and key."""
    record = usage_records.c
    by = (record.user_id, record.model, record.groups, record.task, record.connection)
    # One look at the records, however many kinds of sums; a request that is pending is in none of them.
    parts = (
        select(
            *by,
            func.sum(record.requests).label("requests"),
            func.count().filter(record.status == Status.REFUSED.value).label("refused"),
            func.count().filter(record.status == Status.FAILED.value).label("failed"),
            func.sum(record.prompt_tokens).label("prompt_tokens"),
            func.sum(record.completion_tokens).label("completion_tokens"),
            func.sum(record.total_tokens).label("total_tokens"),
            func.coalesce(func.sum(record.cost), _NOTHING).label("cost"),
        )
        .where(record.ts >= hour, record.ts < hour + HOUR, record.status != Status.PENDING.value)
        .group_by(*by)
        .cte("parts")
    )
    # Written by JSON like this, it is a character that PostgreSQL cannot have in text, nor its functions.
    groups = func.replace(cast(parts.c.groups, Text), "\\u0000", "\\ufffd")
    if dialect == "postgresql":
        names = func.json_array_elements_text(cast(groups, postgresql.JSON))
    else:
        names = func.json_each(groups)
    keys: dict[By, ColumnElement[Any]] = {
        By.ALL: literal("", Text()),
        By.USER: parts.c.user_id,
        By.MODEL: parts.c.model,
        By.GROUP: names.table_valued("value", joins_implicitly=True).c.value,
        By.TASK: func.coalesce(parts.c.task, ""),
        By.CONNECTION: parts.c.connection,
    }
    for kind, key in keys.items():
        yield (
            select(
                literal(kind.value, String()).label("kind"), key.label("key"), *(parts.c[name] for name in SUMMED)
            ).select_from(parts)
        )


async def _has_records(connection: AsyncConnection, hour: float) -> bool:
    ts = usage_records.c.ts
    return await connection.scalar(select(ts).where(ts >= hour, ts < hour + HOUR).limit(1)) is not None


def _instant(seconds: float) -> ColumnElement[float]:
    return literal(seconds, Instant())
