"""The feed of changes: what nodes that follow have to look at again.

Numbers become visible in ascending order, so that who has seen one has seen all before it: a transaction takes its
numbers last, alone, and keeps others from taking any until it has ended. Numbers may be left out, and never repeat.
"""

from collections.abc import Collection
from typing import Literal, NamedTuple

from sqlalchemy import delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from faregate.store.locks import Lock, take
from faregate.store.tables import changes

Kind = Literal["policy", "group", "user"]

KEPT = 100_000
"""Changes that are kept for nodes that are behind."""

PRUNED_EVERY = 1_000
"""Older ones are deleted each time that the number passes a multiple of this."""


class Change(NamedTuple):
    """That something changed, not how. `kind` is "policy", "group" or "user", `key` the id (a group's name) of it."""

    number: int
    kind: str
    key: str


async def append(connection: AsyncConnection, kind: Kind, keys: Collection[str]) -> None:
    """Tell that `keys` changed, as the last work of the transaction that changed them."""
    if not keys:
        return
    await take(connection, Lock.FEED)
    before = await newest(connection)
    await connection.execute(insert(changes), [{"kind": kind, "key": key} for key in keys])
    now = await newest(connection)
    if now // PRUNED_EVERY > before // PRUNED_EVERY:
        await connection.execute(delete(changes).where(changes.c.number <= now - KEPT))


async def after(connection: AsyncConnection, number: int, limit: int) -> list[Change]:
    """At most `limit` changes after `number`, in their order."""
    statement = select(changes).where(changes.c.number > number).order_by(changes.c.number).limit(limit)
    return [Change(row.number, row.kind, row.key) for row in await connection.execute(statement)]


async def newest(connection: AsyncConnection) -> int:
    """The number of the last change; 0 if there is none."""
    return int(await connection.scalar(select(func.max(changes.c.number))) or 0)


async def oldest(connection: AsyncConnection) -> int:
    """The number of the first change that is kept; 0 if there is none."""
    return int(await connection.scalar(select(func.min(changes.c.number))) or 0)
