"""Revision 0003: who is in which group and who has which policy, from columns of `users` to tables, and back."""

import json
import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any, NamedTuple

from alembic.operations import Operations
from sqlalchemy import (
    Column,
    Connection,
    String,
    Text,
    bindparam,
    column,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    table,
    update,
)

from faregate.store.migrations.kinds import instant

_AT_ONCE = 500
_UNKEEPABLE = re.compile("[\0\ud800-\udfff]")

_users = table(
    "users",
    column("id", Text),
    column("connection", Text),
    column("groups", Text),
    column("policy_id", Text),
    column("created_at", instant()),
)
_connections = table("connections", column("name", Text), column("created_at", instant()))
_groups = table("groups", column("name", Text), column("created_at", instant()))
_memberships = table("memberships", column("user_id", Text), column("group_name", Text))
_seen = table("memberships_before", column("user_id", Text), column("group_name", Text))
_policies = table("policies", column("id", Text), column("document", Text))
_group_policies = table("group_policies", column("group_name", Text), column("policy_id", Text), column("priority"))
_assignments = table(
    "assignments", column("kind", Text), column("key", Text), column("policy_id", Text), column("priority")
)

_DEFAULT = {"id": "default", "name": "Default"}
"""The policy that everybody had before anybody wrote one: until now it could be assigned without being there."""


class _Person(NamedTuple):
    id: str
    groups: frozenset[str]
    created_at: Any


def to_tables(op: Operations) -> None:
    """Fill `connections`, `groups` and `assignments`, and keep memberships in mind for `fill_memberships`."""
    # SQLite makes `users` a new table before it is what it will be: nothing may refer to the old one.
    op.create_table(
        _seen.name, Column("user_id", String(32), nullable=False), Column("group_name", Text, nullable=False)
    )
    connection = op.get_bind()
    since = select(_users.c.connection, func.min(_users.c.created_at)).group_by(_users.c.connection)
    connection.execute(insert(_connections).from_select(["name", "created_at"], since))
    _move_groups(connection)
    _move_assignments(connection)


def fill_memberships(op: Operations) -> None:
    """Fill `memberships`, once `users` is what it will be."""
    names = ["user_id", "group_name"]
    op.get_bind().execute(insert(_memberships).from_select(names, select(_seen)))
    op.drop_table(_seen.name)


def from_tables(connection: Connection) -> None:
    """Fill `group_policies` and the columns `groups` (sorted) and `policy_id` of `users`."""
    rules = select(_assignments.c.key, _assignments.c.policy_id, _assignments.c.priority)
    connection.execute(
        insert(_group_policies).from_select(
            ["group_name", "policy_id", "priority"], rules.where(_assignments.c.kind == "group")
        )
    )
    mine = select(_assignments.c.policy_id).where(_assignments.c.kind == "user", _assignments.c.key == _users.c.id)
    connection.execute(update(_users).values(policy_id=mine.scalar_subquery()))
    fill = update(_users).where(_users.c.id == bindparam("of_id")).values(groups=bindparam("its_groups"))
    after = ""
    while ids := _next_ids(connection, after):
        rows = connection.execute(
            select(_memberships).where(_memberships.c.user_id.in_(ids)).order_by(_memberships.c.user_id)
        )
        found = [
            {"of_id": user_id, "its_groups": json.dumps(sorted(row.group_name for row in its), separators=(",", ":"))}
            for user_id, its in groupby(rows, key=lambda row: row.user_id)
        ]
        if found:
            connection.execute(fill, found)
        after = ids[-1]


def _move_groups(connection: Connection) -> None:
    since: dict[str, Any] = {}
    for some in _people(connection):
        for person in some:
            for name in person.groups:
                since[name] = min(since.get(name, person.created_at), person.created_at)
    if not since:
        return
    connection.execute(insert(_groups), [{"name": name, "created_at": since[name]} for name in sorted(since)])
    for some in _people(connection):
        rows = [{"user_id": person.id, "group_name": name} for person in some for name in sorted(person.groups)]
        if rows:
            connection.execute(insert(_seen), rows)


def _move_assignments(connection: Connection) -> None:
    has_default = (exists().where(each.c.policy_id == _DEFAULT["id"]) for each in (_users, _group_policies))
    is_there = exists().where(_policies.c.id == _DEFAULT["id"])
    default = select(literal(_DEFAULT["id"]), literal(json.dumps(_DEFAULT))).where(or_(*has_default), ~is_there)
    connection.execute(insert(_policies).from_select(["id", "document"], default))
    # What was assigned and is not there had no effect, and has none.
    known = select(_policies.c.id)
    of_people = select(literal("user"), _users.c.id, _users.c.policy_id, literal(0)).where(
        _users.c.policy_id.in_(known)
    )
    of_groups = select(
        literal("group"), _group_policies.c.group_name, _group_policies.c.policy_id, _group_policies.c.priority
    ).where(_group_policies.c.policy_id.in_(known))
    for those in (of_people, of_groups):
        connection.execute(insert(_assignments).from_select(["kind", "key", "policy_id", "priority"], those))


def _people(connection: Connection) -> Iterator[list[_Person]]:
    """Everybody, some at a time."""
    after = ""
    while ids := _next_ids(connection, after):
        rows = connection.execute(
            select(_users.c.id, _users.c.groups, _users.c.created_at).where(_users.c.id.in_(ids)).order_by(_users.c.id)
        )
        # Two names that differed only in what a database cannot keep are one.
        yield [
            _Person(
                row.id, frozenset(_UNKEEPABLE.sub("\ufffd", name) for name in json.loads(row.groups)), row.created_at
            )
            for row in rows
        ]
        after = ids[-1]


def _next_ids(connection: Connection, after: str) -> list[str]:
    """The ids of the next people after the one with the id `after`, in the order of the database."""
    statement = select(_users.c.id).where(_users.c.id > after).order_by(_users.c.id).limit(_AT_ONCE)
    return list(connection.scalars(statement))
