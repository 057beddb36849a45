"""The people in the database."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import bindparam, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from faregate.directory import Assignment, User
from faregate.store import policies
from faregate.store.chunks import chunks
from faregate.store.tables import users
from faregate.store.types import keepable
from faregate.store.upsert import insert_missing

_TOLD = ("email", "name", "role", "groups")
_FOLLOWED = (*_TOLD, "last_seen_at")


async def load(connection: AsyncConnection) -> list[User]:
    """Everybody."""
    rows = await connection.execute(select(users))
    return [User(**row) for row in rows.mappings()]


async def find(connection: AsyncConnection, ids: Sequence[str]) -> list[User]:
    """Those with these ids."""
    found: list[User] = []
    for some in chunks(ids):
        rows = await connection.execute(select(users).where(users.c.id.in_(some)))
        found += [User(**row) for row in rows.mappings()]
    return found


async def write(connection: AsyncConnection, seen: Sequence[User]) -> list[str]:
    """Register or follow `seen`. What an administrator decided about somebody known is not touched.

    Returns the ids of those who were not known, or known otherwise.
    """
    latest: dict[tuple[str, str], User] = {}
    for user in seen:
        before = latest.get(_key(user))
        if before is None or user.last_seen_at >= before.last_seen_at:
            latest[_key(user)] = user
    if not latest:
        return []
    # Sorted, so that two writers lock rows in the same order.
    keys = sorted(latest)
    known = {_key(user) for user in await _stored(connection, keys)}
    # Two steps: an upsert minds one unique key, and of two that insert the same person the second breaks the other.
    if new := [_row(latest[key]) for key in keys if key not in known]:
        await connection.execute(insert_missing(connection, users), new)
    # Looked at again, and locked: what another node writes meanwhile is not taken for what was always there.
    stored = await _stored(connection, keys, lock=True)
    follow = update(users).where(
        users.c.connection == bindparam("of_connection"),
        users.c.subject == bindparam("of_subject"),
        # A node that was held up must not undo what another has seen since.
        users.c.last_seen_at <= bindparam("of_last_seen_at"),
    )
    await connection.execute(follow, [_told(latest[key]) for key in keys])
    return [user.id for user in stored if _key(user) not in known or _differ(user, latest[_key(user)])]


async def assign(connection: AsyncConnection, user: User, decision: Assignment) -> list[str]:
    """Keep what an administrator decided about `user`, who may not have been written yet.

    Returns the ids of those who changed. Raises `UnknownPolicy` if the policy is not there.
    """
    policy_id = decision.get("policy_id")
    if policy_id is not None:
        await policies.pin(connection, policy_id)
    changed = await write(connection, [user])
    if not decision:
        return changed
    mine = (users.c.connection == user.connection) & (users.c.subject == user.subject)
    await connection.execute(update(users).where(mine).values(**decision))
    return [stored.id for stored in await _stored(connection, [_key(user)])]


async def _stored(connection: AsyncConnection, keys: Sequence[tuple[str, str]], *, lock: bool = False) -> list[User]:
    found: list[User] = []
    pair = (users.c.connection, users.c.subject)
    # The order of code points, in which `keys` are sorted too, whatever the order of the database is.
    order = [column.collate("C" if connection.dialect.name == "postgresql" else "BINARY") for column in pair]
    for some in chunks(keys):
        statement = select(users).where(tuple_(*pair).in_(some)).order_by(*order)
        rows = await connection.execute(statement.with_for_update() if lock else statement)
        found += [User(**row) for row in rows.mappings()]
    return found


def _differ(stored: User, seen: User) -> bool:
    return any(getattr(stored, name) != _kept(getattr(seen, name)) for name in _TOLD)


def _kept(value: Any) -> Any:
    return keepable(value) if isinstance(value, str) else value


def _key(user: User) -> tuple[str, str]:
    return keepable(user.connection), keepable(user.subject)


def _row(user: User) -> dict[str, Any]:
    return {column.name: getattr(user, column.name) for column in users.columns}


def _told(user: User) -> dict[str, Any]:
    key = {"of_connection": user.connection, "of_subject": user.subject, "of_last_seen_at": user.last_seen_at}
    return key | {name: getattr(user, name) for name in _FOLLOWED}
