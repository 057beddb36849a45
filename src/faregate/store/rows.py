"""The rows of usage records: how they are written, claimed, and become records again."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import Insert, bindparam, or_, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from faregate.records import Facts, Source, Status, UsageRecord
from faregate.store import partitions
from faregate.store.chunks import chunks
from faregate.store.eras import is_fenced
from faregate.store.tables import usage_records
from faregate.store.types import Instant
from faregate.store.upsert import upsert

_row = usage_records.c
_PENDING = _row.status == Status.PENDING.value
_KEY = ("request_id", "ts")
_REST = tuple(column.name for column in usage_records.columns if column.name not in _KEY)
_HOUR_SECONDS = 3600
_TOUCH = text(
    "INSERT INTO stale_hours (hour, touched) VALUES (:hour, 1)"
    " ON CONFLICT (hour) DO UPDATE SET touched = stale_hours.touched + 1"
).bindparams(bindparam("hour", type_=Instant))
_OF_FACTS = ("user_id", "email", "connection", "groups", "policy_id", "rules", "model", "task", "chat_id", "stream")
_OF_RECORD = tuple(
    name for name in UsageRecord.__struct_fields__ if name not in {"facts", "status", "source", "outcome"}
)


async def write(
    connection: AsyncConnection, records: Sequence[UsageRecord], *, node: str, era: int
) -> list[UsageRecord]:
    """Keep `records`, each once: a row that is `pending` is replaced, a final one never changes.

    What is pending belongs to `node`. Returns those that are late, and not written: charged before `era`, and not
    among the final rows. The hours of what is final are stale from now on; who adds one up waits until this
    transaction has ended.
    """
    late = {record.facts.request_id: record for record in records if _is_late(record, era)}
    kept: dict[str, UsageRecord] = {}
    for record in records:
        before = kept.get(record.facts.request_id)
        if not _is_late(record, era) and (before is None or before.status is Status.PENDING):
            kept[record.facts.request_id] = record
    if kept:
        statement = upsert(connection, usage_records, key=_KEY, update=_REST, where=_PENDING)
        # Sorted, so that two writers lock rows in the same order.
        await _insert(connection, statement, [_values(kept[request_id], node) for request_id in sorted(kept)])
    # One that was written in its era, unnoticed by its writer, is in the sums: charging it again would count it twice.
    done = await settled(connection, list(late))
    # Last, as all nodes write to the same few hours: each has them locked from here to the end of its transaction.
    await _touch(connection, kept.values())
    return [record for request_id, record in late.items() if request_id not in done]


async def settled(connection: AsyncConnection, request_ids: Sequence[str]) -> set[str]:
    """Those of `request_ids` that have a final row."""
    done: set[str] = set()
    for some in chunks(request_ids):
        done.update(await connection.scalars(select(_row.request_id).where(_row.request_id.in_(some), ~_PENDING)))
    return done


async def pending(connection: AsyncConnection) -> list[UsageRecord]:
    """The records whose cost is not known or not charged yet, with all that settling them needs, oldest first."""
    statement = select(usage_records).where(_PENDING).order_by(_row.ts, _row.request_id)
    return [_record(row) for row in (await connection.execute(statement)).mappings()]


async def claim(connection: AsyncConnection, node: str, alive: Sequence[str], limit: int) -> list[UsageRecord]:
    """At most `limit` pending records that belong neither to `node` nor to a node of `alive`: now `node`'s alone."""
    is_left = or_(_row.node.is_(None), _row.node.not_in([node, *alive]))
    statement = select(usage_records).where(_PENDING, is_left).order_by(_row.ts, _row.request_id).limit(limit)
    # A row that another node is claiming is passed over.
    rows = (await connection.execute(statement.with_for_update(skip_locked=True))).mappings().all()
    for some in chunks([row["request_id"] for row in rows]):
        await connection.execute(update(usage_records).where(_row.request_id.in_(some)).values(node=node))
    return [_record(row) for row in rows]


async def _insert(connection: AsyncConnection, statement: Insert, values: list[dict[str, Any]]) -> None:
    """Run `statement`, and again once the months that it lacked are made."""
    if connection.dialect.name != "postgresql":
        await connection.execute(statement, values)
        return
    try:
        async with connection.begin_nested():
            await connection.execute(statement, values)
    except DBAPIError as error:
        if not partitions.is_missing(error):
            raise
        # Outside of the savepoint, which has let go of the rows that it locked: others may wait for them who make
        # a month too.
        await partitions.ensure(connection, [row["ts"] for row in values])
        await connection.execute(statement, values)


async def _touch(connection: AsyncConnection, records: Iterable[UsageRecord]) -> None:
    """Let the hours of what is final among `records` be added up anew."""
    final = (record for record in records if record.status is not Status.PENDING)
    hours = {record.facts.admitted_at // _HOUR_SECONDS * _HOUR_SECONDS for record in final}
    if hours:
        # Sorted, for the same reason as rows are.
        await connection.execute(_TOUCH, [{"hour": hour} for hour in sorted(hours)])


def _is_late(record: UsageRecord, era: int) -> bool:
    return is_fenced(record) and record.era < era


def _values(record: UsageRecord, node: str) -> dict[str, Any]:
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
        "node": node if is_pending else None,
        "facts": msgspec.json.encode(facts).decode() if is_pending else None,
    }


def _record(row: Any) -> UsageRecord:
    facts = msgspec.convert(json.loads(row["facts"]), Facts)
    known = {name: row[name] for name in _OF_RECORD}
    outcome = None if row["outcome"] is None else Status(row["outcome"])
    source = None if row["source"] is None else Source(row["source"])
    return UsageRecord(facts=facts, status=Status(row["status"]), source=source, outcome=outcome, **known)
