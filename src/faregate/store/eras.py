"""The era: a number that only grows. What was charged in an era that is over is not written any more.

So the sum of what was charged before an era stays the same for ever, and counters can start from it.
"""

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from faregate.records import Status, UsageRecord
from faregate.store.errors import StoreError
from faregate.store.locks import Lock, share, take
from faregate.store.tables import meta

KEY = "era"
FIRST = 0

_PENDING, _REFUSED = Status.PENDING, Status.REFUSED


def is_fenced(record: UsageRecord) -> bool:
    """Whether `record` may be written in its own era alone: a charge on a shared ledger."""
    status = record.status
    return record.era > 0 and status is not _PENDING and status is not _REFUSED


async def current(connection: AsyncConnection) -> int:
    """The era of this moment."""
    return told(await connection.scalar(select(meta.c.value).where(meta.c.key == KEY)))


def told(value: str | int | None) -> int:
    """The era that the database told."""
    if value is None:
        raise StoreError("the database has lost the number of its era: restore the table meta from a backup")
    return int(value)


async def hold(connection: AsyncConnection) -> int:
    """The era, which does not end before this transaction does. To be called before any row is locked."""
    await share(connection, Lock.ERA)
    # In a statement of its own: one that waits for a lock still sees what was there before it waited.
    return await current(connection)


async def begin(connection: AsyncConnection, above: int) -> int:
    """Begin the next era, once all transactions that hold this one have ended; its number, more than `above`."""
    await take(connection, Lock.ERA)
    following = max(await current(connection), above) + 1
    await connection.execute(update(meta).where(meta.c.key == KEY).values(value=str(following)))
    return following
