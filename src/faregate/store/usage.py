"""What the usage records in the database say: pages of them, and sums."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from sqlalchemy import ColumnElement, Select, and_, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from faregate.records import Source, Status
from faregate.store.errors import UnknownRecord
from faregate.store.tables import carried_charges, usage_records

WEEK, DAY = 7 * 86_400.0, 86_400.0
"""How much time one statement adds up at most: that of all time, or of a month, could take longer than one may. Days
where people, groups and models are told apart, as there are so many of these together."""

_row = usage_records.c


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Which records, newest first. Times are seconds since the epoch, from `since` on, up to but without `until`.

    A record is somebody's if its user is among `user_ids`, or it was made under `email`; both None is everybody.
    `model` is the requested one, `*` in it stands for anything. `before` is the request id that the page follows.
    """

    limit: int = 100
    before: str | None = None
    user_ids: tuple[str, ...] | None = None
    email: str | None = None
    model: str | None = None
    since: float | None = None
    until: float | None = None
    status: Status | None = None


@dataclass(frozen=True, slots=True)
class UsageRow:
    """One usage record as stored. `ts` is when it was admitted (seconds since the epoch), `cost` is in dollars."""

    request_id: str
    ts: float
    user_id: str
    email: str | None
    connection: str
    groups: tuple[str, ...]
    policy_id: str
    rules: tuple[str, ...]
    model: str
    served_model: str | None
    provider: str | None
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    cost: Decimal | None
    status: Status
    source: Source | None
    task: str | None
    chat_id: str | None
    stream: bool
    ttft_ms: int | None
    duration_ms: int | None
    generation_id: str | None
    reason: str | None


class SpendRow(NamedTuple):
    """What one person was charged on one set of model limits: requests, tokens, nano-dollars."""

    user_id: str
    groups: tuple[str, ...]
    models: tuple[str, ...]
    requests: int
    tokens: int
    nano: int


class ChargedRow(NamedTuple):
    """One charge, for windows that slide. `admitted_at` is in seconds since the epoch."""

    user_id: str
    groups: tuple[str, ...]
    models: tuple[str, ...]
    requests: int
    tokens: int
    nano: int
    admitted_at: float
    request_id: str


_SHOWN = [usage_records.c[field.name] for field in fields(UsageRow)]


async def page(connection: AsyncConnection, query: UsageQuery) -> list[UsageRow]:
    """At most `query.limit` records, newest first. Raises `UnknownRecord` if `query.before` is not there."""
    statement = select(*_SHOWN).where(*_conditions(query))
    if query.before is not None:
        statement = statement.where(await _older_than(connection, query.before))
    statement = statement.order_by(_row.ts.desc(), _row.request_id.desc()).limit(query.limit)
    return [_usage_row(row) for row in (await connection.execute(statement)).mappings()]


Payer = Literal["user_id", "groups", "models"]
"""What charges are told apart by."""

PAYER: tuple[Payer, ...] = ("user_id", "groups", "models")


async def spend(
    connection: AsyncConnection,
    since: float,
    until: float | None,
    before_era: int | None,
    by: Collection[Payer] = PAYER,
) -> list[SpendRow]:
    """What was charged to requests admitted since `since`, up to but without `until` (epoch seconds), summed.

    With `before_era` only what was charged in eras before that one. Since 0 without an end is all time, with what was
    charged by records that are gone. What is not in `by` is not told apart, and is empty: there are many more people
    with models than people.
    """
    columns = [_row[name] for name in PAYER if name in by]
    totals = (func.sum(_row.requests), func.sum(_row.total_tokens), func.sum(_row.cost_nano))
    first, last = (await connection.execute(select(func.min(_row.ts), func.max(_row.ts)))).one()
    found: dict[tuple[Any, ...], tuple[int, int, int]] = {}
    if first is not None:
        step = WEEK if len(columns) < 2 else DAY
        end = last + step if until is None else min(until, last + step)
        for starts, ends in _slices(max(since, first), end, step):
            some: Select[Any] = select(*columns, *totals).where(*_charged(starts, before_era), _row.ts < ends)
            _add(found, await connection.execute(some.group_by(*columns)), len(columns))
    if since <= 0 and until is None:
        names = [name for name in SpendRow._fields if name in by or name not in PAYER]
        carried = await connection.execute(select(*(carried_charges.c[name] for name in names)))
        _add(found, carried, len(columns))
    return [_spend_row(payer, amounts, by) for payer, amounts in found.items()]


async def recent(connection: AsyncConnection, since: float, before_era: int | None) -> list[ChargedRow]:
    """Every charge to requests admitted since `since` (seconds since the epoch), oldest first.

    With `before_era` only what was charged in eras before that one.
    """
    who = (_row.user_id, _row.groups, _row.models)
    what = (_row.requests, _row.total_tokens, _row.cost_nano)
    statement: Select[Any] = (
        select(*who, *what, _row.ts, _row.request_id)
        .where(*_charged(since, before_era))
        .order_by(_row.ts, _row.request_id)
    )
    return [ChargedRow(*row) for row in await connection.execute(statement)]


def _slices(since: float, until: float, step: float) -> Iterator[tuple[float, float]]:
    while since < until:
        yield since, min(since + step, until)
        since += step


def _add(found: dict[tuple[Any, ...], tuple[int, int, int]], rows: Iterable[Any], columns: int) -> None:
    """Add `rows`, whose first `columns` say who paid: what is `found` grows with those who pay, not with time."""
    for row in rows:
        payer, (requests, tokens, nano) = tuple(row[:columns]), (int(amount or 0) for amount in row[columns:])
        before = found.get(payer, (0, 0, 0))
        found[payer] = (before[0] + requests, before[1] + tokens, before[2] + nano)


def _spend_row(payer: tuple[Any, ...], amounts: tuple[int, int, int], by: Collection[Payer]) -> SpendRow:
    who = dict(zip((name for name in PAYER if name in by), payer, strict=True))
    return SpendRow(who.get("user_id", ""), who.get("groups", ()), who.get("models", ()), *amounts)


def _charged(since: float, before_era: int | None) -> Iterable[ColumnElement[bool]]:
    yield _row.status.not_in([Status.PENDING.value, Status.REFUSED.value])
    yield _row.ts >= since
    if before_era is not None:
        yield _row.era < before_era


def _conditions(query: UsageQuery) -> Iterable[ColumnElement[bool]]:
    if query.user_ids is not None or query.email is not None:
        yield or_(_row.user_id.in_(query.user_ids or ()), _row.email == query.email)
    if query.model is not None:
        yield func.lower(_row.model).like(_like(query.model), escape="\\")
    if query.since is not None:
        yield _row.ts >= query.since
    if query.until is not None:
        yield _row.ts < query.until
    if query.status is not None:
        yield _row.status == query.status.value


async def _older_than(connection: AsyncConnection, request_id: str) -> ColumnElement[bool]:
    ts = await connection.scalar(select(_row.ts).where(_row.request_id == request_id))
    if ts is None:
        raise UnknownRecord(request_id)
    return and_(_row.ts <= ts, or_(_row.ts < ts, _row.request_id < request_id))


def _like(pattern: str) -> str:
    literal = pattern.lower().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return literal.replace("*", "%")


def _usage_row(row: Any) -> UsageRow:
    source = None if row["source"] is None else Source(row["source"])
    return UsageRow(**{**row, "status": Status(row["status"]), "source": source})
