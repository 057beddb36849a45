"""The locks that transactions take beside those on rows, each until its transaction has ended.

PostgreSQL's advisory locks: who waits is served in turn, so that a stream of shared holders keeps nobody out, and they
write nothing. SQLite needs none: there, one transaction that writes excludes all others.

In the order in which a transaction takes them, which keeps two from waiting for each other: `RULES` or `ERA` before any
row is locked, then rows, then `FEED`. Whoever changes what administrators decide has `RULES`: what it was before, as
the audit log says, is then what it was up to this very change. `SCHEMA` and `RECONCILIATIONS` are taken alone.
The locks of jobs come first, and nobody waits for them.
"""

from enum import IntEnum, unique

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from faregate.store.errors import JobTaken


@unique
class Lock(IntEnum):
    """The numbers of the locks; any that nobody else uses in this database."""

    SCHEMA = 0x66617265
    ERA = 0x66617266
    FEED = 0x66617267
    RECONCILIATIONS = 0x66617268
    RULES = 0x66617269
    PARTITIONS = 0x6661726A
    ROLLUPS = 0x6661726B
    RETENTION = 0x6661726C


async def take(connection: AsyncConnection, lock: Lock) -> None:
    """Wait until nobody else has `lock`, and have it alone."""
    if connection.dialect.name == "postgresql":
        await connection.execute(select(func.pg_advisory_xact_lock(lock.value)))


async def share(connection: AsyncConnection, lock: Lock) -> None:
    """Wait until nobody has `lock` alone, and have it together with others."""
    if connection.dialect.name == "postgresql":
        await connection.execute(select(func.pg_advisory_xact_lock_shared(lock.value)))


async def try_take(connection: AsyncConnection, lock: Lock) -> None:
    """Have `lock` alone, without waiting for it. Raises `JobTaken` if somebody else has it."""
    if connection.dialect.name == "postgresql" and not await connection.scalar(
        select(func.pg_try_advisory_xact_lock(lock.value))
    ):
        raise JobTaken(lock.name.lower())
