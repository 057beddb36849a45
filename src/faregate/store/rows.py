"""The rows of usage records: how they are written, claimed, and become records again."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import or_, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from faregate.records import Facts, Source, Status, UsageRecord
from faregate.store import inserts, partitions
from faregate.store.chunks import chunks
from faregate.store.eras import is_fenced
from faregate.store.tables import usage_records
from faregate.store.types import microseconds_of
from faregate.store.values import Values, values_of

_row = usage_records.c
_PENDING = _row.status == Status.PENDING.value
_HOUR_SECONDS = 3600
_AS_THEY_ARE = tuple(
    name for name in UsageRecord.__struct_fields__ if name not in {"facts", "status", "source", "outcome"}
)


class Batch(NamedTuple):
    """What is to be written of some records: at most one of each request, in the order in which rows are locked."""

    records: list[UsageRecord]
    late: list[UsageRecord]
    """Charged in an era that is over: not to be written any more."""

    def values(self, node: str) -> Iterator[Values]:
        """The rows, each made when it is asked for. What is pending belongs to `node`."""
        return (values_of(record, node) for record in self.records)

    def hours(self) -> list[int]:
        """The hours of what is final, ascending, which are to be added up anew (microseconds since the epoch)."""
        final = [record for record in self.records if record.status is not Status.PENDING]
        hours = {record.facts.admitted_at // _HOUR_SECONDS for record in final}
        return [microseconds_of(hour * _HOUR_SECONDS) for hour in sorted(hours)]

    def instants(self) -> list[float]:
        """When what is to be written was admitted (seconds since the epoch)."""
        return [record.facts.admitted_at for record in self.records]


def batch(records: Sequence[UsageRecord], era: int) -> Batch:
    """What is to be written of `records` in `era`: of a request the first that is final, else the last that is not."""
    late: dict[str, UsageRecord] = {}
    kept: dict[str, UsageRecord] = {}
    for record in records:
        request_id = record.facts.request_id
        if record.era < era and is_fenced(record):
            late[request_id] = record
            continue
        before = kept.get(request_id)
        if before is None or before.status is Status.PENDING:
            kept[request_id] = record
    # Sorted, so that two writers lock rows in the same order.
    return Batch([kept[request_id] for request_id in sorted(kept)], list(late.values()))


async def write(
    connection: AsyncConnection, records: Sequence[UsageRecord], *, node: str, era: int
) -> list[UsageRecord]:
    """Keep `records`, each once: a row that is `pending` is replaced, a final one never changes.

    What is pending belongs to `node`. Returns those that are late, and not written: charged before `era`, and not
    among the final rows. The hours of what is final are stale from now on; who adds one up waits until this
    transaction has ended.
    """
    some = batch(records, era)
    if some.records:
        if connection.dialect.name == "postgresql":
            await _insert_at_once(connection, some, node)
        else:
            await _insert_one_by_one(connection, some, node)
    return await unwritten(connection, some.late)


async def unwritten(connection: AsyncConnection, late: Sequence[UsageRecord]) -> list[UsageRecord]:
    """Those of `late` that have no final row.

    One that was written in its era, unnoticed by its writer, is in the sums: charging it again would count it twice.
    """
    done = await settled(connection, [record.facts.request_id for record in late])
    return [record for record in late if record.facts.request_id not in done]


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


async def _insert_one_by_one(connection: AsyncConnection, some: Batch, node: str) -> None:
    """Write to SQLite."""
    rows = [inserts.parameters(values) for values in some.values(node)]
    written = await connection.exec_driver_sql(inserts.SQLITE, rows)
    hours = some.hours()
    if written.rowcount and hours:
        await connection.exec_driver_sql(inserts.SQLITE_TOUCH, [(hour,) for hour in hours])


async def _insert_at_once(connection: AsyncConnection, some: Batch, node: str) -> None:
    """Write to PostgreSQL, and again once the months that it lacked are made."""
    arguments = (inserts.document([inserts.part(list(some.values(node)))]), some.hours())
    try:
        async with connection.begin_nested():
            await connection.exec_driver_sql(inserts.POSTGRESQL, arguments)
    except DBAPIError as error:
        if not partitions.is_missing(error):
            raise
        # Outside of the savepoint, which has let go of the rows that it locked: others may wait for them who make
        # a month too.
        await partitions.ensure(connection, some.instants())
        await connection.exec_driver_sql(inserts.POSTGRESQL, arguments)


def _record(row: Any) -> UsageRecord:
    facts = msgspec.convert(json.loads(row["facts"]), Facts)
    known = {name: row[name] for name in _AS_THEY_ARE}
    outcome = None if row["outcome"] is None else Status(row["outcome"])
    source = None if row["source"] is None else Source(row["source"])
    return UsageRecord(facts=facts, status=Status(row["status"]), source=source, outcome=outcome, **known)
