"""The people in the database."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import bindparam, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from faregate.directory import Assignment, User
from faregate.store.tables import users
from faregate.store.upsert import insert_missing

_TOLD = ("email", "name", "role", "groups", "last_seen_at")


async def load(connection: AsyncConnection) -> list[User]:
    """Everybody."""
    rows = await connection.execute(select(users))
    return [User(**row) for row in rows.mappings()]


async def write(connection: AsyncConnection, seen: Sequence[User]) -> None:
    """Register or follow `seen`. What an administrator decided about somebody known is not touched."""
    latest: dict[tuple[str, str], User] = {}
    for user in seen:
        before = latest.get((user.connection, user.subject))
        if before is None or user.last_seen_at >= before.last_seen_at:
            latest[user.connection, user.subject] = user
    if not latest:
        return
    # Sorted, so that two writers lock rows in the same order.
    rows = [latest[key] for key in sorted(latest)]
    # Two steps: an upsert minds one unique key, and of two that insert the same person the second breaks the other.
    await connection.execute(insert_missing(connection, users), [_row(user) for user in rows])
    follow = update(users).where(
        users.c.connection == bindparam("of_connection"),
        users.c.subject == bindparam("of_subject"),
        # A node that was held up must not undo what another has seen since.
        users.c.last_seen_at <= bindparam("of_last_seen_at"),
    )
    await connection.execute(follow, [_told(user) for user in rows])


async def assign(connection: AsyncConnection, user: User, changes: Assignment) -> None:
    """Keep what an administrator decided about `user`, who may not have been written yet."""
    await write(connection, [user])
    if not changes:
        return
    mine = (users.c.connection == user.connection) & (users.c.subject == user.subject)
    await connection.execute(update(users).where(mine).values(**changes))


def _row(user: User) -> dict[str, Any]:
    return {column.name: getattr(user, column.name) for column in users.columns}


def _told(user: User) -> dict[str, Any]:
    key = {"of_connection": user.connection, "of_subject": user.subject, "of_last_seen_at": user.last_seen_at}
    return key | {name: getattr(user, name) for name in _TOLD}
