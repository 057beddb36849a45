"""The usage records in the database."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import ColumnElement, Select, and_, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from faregate.records import Facts, Source, Status, UsageRecord
from faregate.store.errors import UnknownRecord
from faregate.store.tables import usage_records
from faregate.store.upsert import upsert

_row = usage_records.c
_KEY = ("request_id",)
_REST = tuple(column.name for column in usage_records.columns if column.name not in _KEY)
_OF_FACTS = ("user_id", "email", "connection", "groups", "policy_id", "rules", "model", "task", "chat_id", "stream")
_OF_RECORD = tuple(
    field.name for field in fields(UsageRecord) if field.name not in {"facts", "status", "source", "outcome"}
)


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


_CHARGED = _row.status.not_in([Status.PENDING.value, Status.REFUSED.value])
_SHOWN = [usage_records.c[field.name] for field in fields(UsageRow)]


async def write(connection: AsyncConnection, records: Sequence[UsageRecord]) -> None:
    """Keep `records`, each once: a row that is `pending` is replaced, a final one never changes."""
    kept: dict[str, UsageRecord] = {}
    for record in records:
        before = kept.get(record.facts.request_id)
        if before is None or before.status is Status.PENDING:
            kept[record.facts.request_id] = record
    if not kept:
        return
    statement = upsert(
        connection,
        usage_records,
        key=_KEY,
        update=_REST,
        where=_row.status == Status.PENDING.value,
    )
    # Sorted, so that two writers lock rows in the same order.
    await connection.execute(statement, [_values(kept[request_id]) for request_id in sorted(kept)])


async def page(connection: AsyncConnection, query: UsageQuery) -> list[UsageRow]:
    """At most `query.limit` records, newest first. Raises `UnknownRecord` if `query.before` is not there."""
    statement = select(*_SHOWN).where(*_conditions(query))
    if query.before is not None:
        statement = statement.where(await _older_than(connection, query.before))
    statement = statement.order_by(_row.ts.desc(), _row.request_id.desc()).limit(query.limit)
    return [_usage_row(row) for row in (await connection.execute(statement)).mappings()]


async def spend(connection: AsyncConnection, since: float, until: float | None) -> list[SpendRow]:
    """What was charged to requests admitted since `since`, up to but without `until` (epoch seconds), summed."""
    by = (_row.user_id, _row.groups, _row.models)
    totals = (func.sum(_row.requests), func.sum(_row.total_tokens), func.sum(_row.cost_nano))
    statement: Select[Any] = select(*by, *totals).where(_CHARGED, _row.ts >= since).group_by(*by)
    if until is not None:
        statement = statement.where(_row.ts < until)
    rows = await connection.execute(statement)
    return [
        SpendRow(user_id, groups, models, int(requests), int(tokens), int(nano))
        for user_id, groups, models, requests, tokens, nano in rows
    ]


async def recent(connection: AsyncConnection, since: float) -> list[ChargedRow]:
    """Every charge to requests admitted since `since` (seconds since the epoch), oldest first."""
    who = (_row.user_id, _row.groups, _row.models)
    what = (_row.requests, _row.total_tokens, _row.cost_nano)
    statement: Select[Any] = (
        select(*who, *what, _row.ts).where(_CHARGED, _row.ts >= since).order_by(_row.ts, _row.request_id)
    )
    return [ChargedRow(*row) for row in await connection.execute(statement)]


async def pending(connection: AsyncConnection) -> list[UsageRecord]:
    """The records whose cost is not known yet, with all that settling them needs, oldest first."""
    statement = select(usage_records).where(_row.status == Status.PENDING.value).order_by(_row.ts, _row.request_id)
    return [_record(row) for row in (await connection.execute(statement)).mappings()]


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


def _values(record: UsageRecord) -> dict[str, Any]:
    facts = record.facts
    values = {name: getattr(facts, name) for name in _OF_FACTS}
    values |= {name: getattr(record, name) for name in _OF_RECORD}
    is_pending = record.status is Status.PENDING
    return values | {
        "request_id": facts.request_id,
        "ts": facts.admitted_at,
        "models": record.counted_models(),
        "status": record.status.value,
        "outcome": None if record.outcome is None else record.outcome.value,
        "source": None if record.source is None else record.source.value,
        "facts": json.dumps(asdict(facts), separators=(",", ":")) if is_pending else None,
    }


def _record(row: Any) -> UsageRecord:
    facts = msgspec.convert(json.loads(row["facts"]), Facts)
    known = {name: row[name] for name in _OF_RECORD}
    outcome = None if row["outcome"] is None else Status(row["outcome"])
    return UsageRecord(facts=facts, status=Status(row["status"]), source=_source(row), outcome=outcome, **known)


def _usage_row(row: Any) -> UsageRow:
    return UsageRow(**{**row, "status": Status(row["status"]), "source": _source(row)})


def _source(row: Any) -> Source | None:
    return None if row["source"] is None else Source(row["source"])
