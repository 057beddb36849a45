"""Usage records of a span of time, oldest first, a page at a time: however many there are, none waits in memory."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from faregate.records import Source, Status
from faregate.store.tables import usage_records
from faregate.store.usage import UsageRow

PAGE = 5000
"""Records of one page: some megabytes, a fraction of a second."""

_row = usage_records.c
_FIELDS = tuple(field.name for field in fields(UsageRow))
_SHOWN = [_row[name] for name in _FIELDS]
_STATUS, _SOURCE = _FIELDS.index("status"), _FIELDS.index("source")


async def page(
    connection: AsyncConnection, since: float, until: float, after: UsageRow | None, limit: int
) -> list[UsageRow]:
    """At most `limit` records from `since` up to but without `until` (epoch seconds), oldest first, after `after`.

    A page begins where the one before it ended, by the index on time: no cursor has to be kept open, which would keep
    a transaction of PostgreSQL, and all that is dropped meanwhile, for as long as somebody reads.
    """
    statement = select(*_SHOWN).where(*_conditions(since, until, after)).order_by(_row.ts, _row.request_id).limit(limit)
    return [_usage_row(*row) for row in await connection.execute(statement)]


def _conditions(since: float, until: float, after: UsageRow | None) -> Iterable[ColumnElement[bool]]:
    yield _row.ts < until
    if after is None:
        yield _row.ts >= since
    else:
        # The bound on time alone is what both databases find in the index.
        yield _row.ts >= after.ts
        yield or_(_row.ts > after.ts, _row.request_id > after.request_id)


def _usage_row(*values: Any) -> UsageRow:
    # By position: by name it takes as long as all the rest of the way from the database to a file.
    row = list(values)
    row[_STATUS] = Status(row[_STATUS])
    row[_SOURCE] = None if row[_SOURCE] is None else Source(row[_SOURCE])
    return UsageRow(*row)
