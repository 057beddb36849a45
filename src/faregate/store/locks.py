"""The locks that transactions take beside those on rows, each until its transaction has ended.

PostgreSQL's advisory locks: who waits is served in turn, so that a stream of shared holders keeps nobody out, and they
write nothing. SQLite needs none: there, one transaction that writes excludes all others.

In the order in which a transaction takes them, which keeps two from waiting for each other: `ERA` before any row is
locked, then rows, then `FEED`. `SCHEMA` is taken alone.
"""

from enum import IntEnum

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection


class Lock(IntEnum):
    """The numbers of the locks; any that nobody else uses in this database."""

    SCHEMA = 0x66617265
    ERA = 0x66617266
    FEED = 0x66617267


async def take(connection: AsyncConnection, lock: Lock) -> None:
    """Wait until nobody else has `lock`, and have it alone."""
    if connection.dialect.name == "postgresql":
        await connection.execute(select(func.pg_advisory_xact_lock(lock.value)))


async def share(connection: AsyncConnection, lock: Lock) -> None:
    """Wait until nobody has `lock` alone, and have it together with others."""
    if connection.dialect.name == "postgresql":
        await connection.execute(select(func.pg_advisory_xact_lock_shared(lock.value)))
