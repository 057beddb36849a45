"""The people in the database.

Writers take their locks in one order, so that no two wait for each other: policies, connections, groups, users,
memberships, assignments, and the rows of each in the order of their keys. The row that a foreign key names is locked
too, shared, by an INSERT: so each table comes after those that it names. Of connections and groups none is ever
changed or deleted, and whose user is locked, nobody else touches their memberships and assignment.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Row, Table, bindparam, delete, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from faregate.directory import Assignment, User
from faregate.store import policies
from faregate.store.audit import Document, Edit
from faregate.store.chunks import chunks
from faregate.store.tables import assignments, connections, groups, memberships, users
from faregate.store.types import keepable, kept, microseconds_of
from faregate.store.upsert import insert_missing, upsert

_TOLD = ("email", "name", "role")
_COLUMNS = tuple(column.name for column in users.columns)


async def load(connection: AsyncConnection) -> list[User]:
    """Everybody."""
    return await _people(connection, None)


async def find(connection: AsyncConnection, ids: Sequence[str]) -> list[User]:
    """Those with these ids."""
    return [user for some in chunks(ids) for user in await _people(connection, some)]


def latest_of(seen: Sequence[User]) -> dict[tuple[str, str], User]:
    """Of each person in `seen` the latest state, by connection and subject."""
    latest: dict[tuple[str, str], User] = {}
    for user in seen:
        key = _key(user)
        before = latest.get(key)
        if before is None or user.last_seen_at >= before.last_seen_at:
            latest[key] = user
    return latest


async def write(connection: AsyncConnection, seen: Sequence[User]) -> list[str]:
    """Register or follow `seen`, with their groups. What an administrator decided about somebody is not touched.

    Returns the ids of those who were not known, or known otherwise.
    """
    latest = latest_of(seen)
    if not latest:
        return []
    keys = sorted(latest)
    known = await _known(connection, keys)
    new = [latest[key] for key in keys if key not in known]
    await _name(connection, connections, _earliest((user.connection, user.created_at) for user in new))
    named = ((group, user.last_seen_at) for user in latest.values() for group in user.groups)
    await _name(connection, groups, _earliest(named))
    # Two steps: an upsert minds one unique key, and of two that insert the same person the second breaks the other.
    if new:
        rows = [{name: getattr(user, name) for name in _COLUMNS} for user in new]
        await connection.execute(insert_missing(connection, users), rows)
    # Looked at again, and locked: what another node writes meanwhile is not taken for what was always there.
    stored = await _locked(connection, keys)
    return await _follow(connection, stored, latest, known)


async def assign(connection: AsyncConnection, user: User, decision: Assignment) -> tuple[list[str], Edit]:
    """Keep what an administrator decided about `user`, who may not have been written yet.

    Returns the ids of those who changed, and what became of the decision. Raises `UnknownPolicy` if the policy is not
    there.
    """
    policy_id = decision.get("policy_id")
    if policy_id is not None:
        await policies.pin(connection, policy_id)
    changed = await write(connection, [user])
    [row] = await _locked(connection, [_key(user)])
    before = Assignment(is_active=row.is_active, policy_id=await _assigned(connection, row.id))
    after = Assignment(**{**before, **decision})
    edit = Edit("assign", "user", row.id, _document(before), _document(after))
    if not edit.changes:
        return changed, edit
    await connection.execute(update(users).where(users.c.id == row.id).values(is_active=after["is_active"]))
    if after["policy_id"] is None:
        await connection.execute(delete(assignments).where(*_of_user(row.id)))
    else:
        statement = upsert(connection, assignments, key=["kind", "key"], update=["policy_id"])
        of_user = {"kind": "user", "key": row.id, "policy_id": after["policy_id"], "priority": 0}
        await connection.execute(statement, [of_user])
    return [row.id], edit


async def _people(connection: AsyncConnection, ids: Sequence[str] | None) -> list[User]:
    """Those with these ids, at most as many as a statement may name; everybody for None.

    The groups are asked for after the people: who changes in between has the new ones and an old `last_seen_at`, which
    nobody takes for newer than the change itself.
    """
    people = select(users)
    members = select(memberships.c.user_id, memberships.c.group_name)
    assigned = select(assignments.c.key, assignments.c.policy_id).where(assignments.c.kind == "user")
    if ids is not None:
        people = people.where(users.c.id.in_(ids))
        members = members.where(memberships.c.user_id.in_(ids))
        assigned = assigned.where(assignments.c.key.in_(ids))
    rows = (await connection.execute(people)).mappings().all()
    groups_of: defaultdict[str, list[str]] = defaultdict(list)
    for user_id, group in (await connection.execute(members)).all():
        groups_of[user_id].append(group)
    policy_of = {row.key: row.policy_id for row in await connection.execute(assigned)}
    return [
        User(**row, groups=tuple(sorted(groups_of.get(row["id"], ()))), policy_id=policy_of.get(row["id"]))
        for row in rows
    ]


async def _known(connection: AsyncConnection, keys: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
    pair = (users.c.connection, users.c.subject)
    return {
        (row.connection, row.subject)
        for some in chunks(keys)
        for row in await connection.execute(select(*pair).where(tuple_(*pair).in_(some)))
    }


async def _name(connection: AsyncConnection, table: Table, since: Mapping[str, float]) -> None:
    """Add the names that `table` lacks, known since these times (seconds since the epoch)."""
    names = sorted(since)
    known = {
        name
        for some in chunks(names)
        for name in await connection.scalars(select(table.c.name).where(table.c.name.in_(some)))
    }
    if new := [{"name": name, "created_at": since[name]} for name in names if name not in known]:
        await connection.execute(insert_missing(connection, table), new)


async def _locked(connection: AsyncConnection, keys: Sequence[tuple[str, str]]) -> list[Row[Any]]:
    pair = (users.c.connection, users.c.subject)
    # The order of code points, in which `keys` are sorted too, whatever the order of the database is.
    order = [column.collate("C" if connection.dialect.name == "postgresql" else "BINARY") for column in pair]
    return [
        row
        for some in chunks(keys)
        for row in await connection.execute(
            select(users).where(tuple_(*pair).in_(some)).order_by(*order).with_for_update()
        )
    ]


async def _follow(
    connection: AsyncConnection,
    stored: Sequence[Row[Any]],
    latest: Mapping[tuple[str, str], User],
    known: set[tuple[str, str]],
) -> list[str]:
    """Bring the locked rows `stored` to what was seen, but never back. Returns the ids of those new or different."""
    groups_of = await _memberships(connection, [row.id for row in stored])
    changed: list[str] = []
    told: list[dict[str, Any]] = []
    left: list[dict[str, str]] = []
    joined: list[dict[str, str]] = []
    for row in stored:
        key = (row.connection, row.subject)
        user = latest[key]
        before, now = groups_of[row.id], {keepable(group) for group in user.groups}
        differs = before != now or any(getattr(row, name) != kept(getattr(user, name)) for name in _TOLD)
        if differs or key not in known:
            changed.append(row.id)
        ahead = microseconds_of(user.last_seen_at) - microseconds_of(row.last_seen_at)
        # A node that was held up must not undo what another has seen since.
        if ahead > 0 or (ahead == 0 and differs):
            told.append({"of_id": row.id, **{name: getattr(user, name) for name in (*_TOLD, "last_seen_at")}})
            left += [{"of_id": row.id, "of_group": group} for group in sorted(before - now)]
            joined += [{"user_id": row.id, "group_name": group} for group in sorted(now - before)]
    if told:
        await connection.execute(update(users).where(users.c.id == bindparam("of_id")), told)
    if left:
        mine = (memberships.c.user_id == bindparam("of_id")) & (memberships.c.group_name == bindparam("of_group"))
        await connection.execute(delete(memberships).where(mine), left)
    if joined:
        await connection.execute(insert(memberships), joined)
    return changed


async def _memberships(connection: AsyncConnection, ids: Sequence[str]) -> defaultdict[str, set[str]]:
    groups_of: defaultdict[str, set[str]] = defaultdict(set)
    for some in chunks(ids):
        for row in await connection.execute(select(memberships).where(memberships.c.user_id.in_(some))):
            groups_of[row.user_id].add(row.group_name)
    return groups_of


async def _assigned(connection: AsyncConnection, user_id: str) -> str | None:
    policy_id: str | None = await connection.scalar(select(assignments.c.policy_id).where(*_of_user(user_id)))
    return policy_id


def _of_user(user_id: str) -> tuple[Any, Any]:
    return assignments.c.kind == "user", assignments.c.key == user_id


def _document(decision: Assignment) -> Document:
    return {"is_active": decision["is_active"], "policy_id": decision["policy_id"]}


def _earliest(seen: Iterable[tuple[str, float]]) -> dict[str, float]:
    since: dict[str, float] = {}
    for name, at in seen:
        known_as = keepable(name)
        since[known_as] = min(at, since.get(known_as, at))
    return since


def _key(user: User) -> tuple[str, str]:
    return keepable(user.connection), keepable(user.subject)
