"""Policies, and the groups they are assigned to, in the database."""

import json
from decimal import Decimal
from typing import Any

from sqlalchemy import delete as delete_from
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from faregate.policy.document import InvalidPolicy, document_of, parse_policy
from faregate.policy.model import DEFAULT_POLICY_ID, GroupPolicy, Policy
from faregate.policy.rulebook import Rulebook
from faregate.store.audit import Document, Edit
from faregate.store.errors import PolicyInUse, StoreError, UnknownPolicy
from faregate.store.tables import assignments, policies
from faregate.store.upsert import insert_missing, upsert

_BUILT_IN = Rulebook((), ()).policies[DEFAULT_POLICY_ID]


async def load(connection: AsyncConnection) -> list[Policy]:
    """Every policy, by id."""
    rows = await connection.execute(select(policies.c.id, policies.c.document).order_by(policies.c.id))
    return [_parse(policy_id, document) for policy_id, document in rows]


async def save(connection: AsyncConnection, policy: Policy) -> Edit:
    """Add `policy`, or replace the one with its id."""
    before, after = await _locked(connection, policy.id), document_of(policy)
    edit = Edit("create" if before is None else "replace", "policy", policy.id, before, after)
    if edit.changes:
        statement = upsert(connection, policies, key=["id"], update=["document"])
        await connection.execute(statement, [{"id": policy.id, "document": json.dumps(after)}])
    return edit


async def pin(connection: AsyncConnection, policy_id: str) -> None:
    """Let a policy stay at least until this transaction has ended. Raises `UnknownPolicy` if it is not there.

    To be called before any row of people or groups is locked: see `users`.
    """
    if policy_id == DEFAULT_POLICY_ID:
        # There always is one, and now that it is assigned it has to be in the database too.
        built_in = {"id": DEFAULT_POLICY_ID, "document": json.dumps(document_of(_BUILT_IN))}
        await connection.execute(insert_missing(connection, policies), [built_in])
    mine = select(policies.c.id).where(policies.c.id == policy_id)
    if await connection.scalar(mine.with_for_update(read=True)) is None:
        raise UnknownPolicy(policy_id)


async def delete(connection: AsyncConnection, policy_id: str) -> Edit:
    """Delete a policy. Raises `PolicyInUse` while a person or a group is assigned to it."""
    # In a statement of its own: the next one sees what was assigned while this one waited.
    before = await _locked(connection, policy_id)
    assigned = await connection.execute(
        select(assignments.c.kind, assignments.c.key).where(assignments.c.policy_id == policy_id)
    )
    users, groups = 0, []
    for kind, key in assigned:
        if kind == "user":
            users += 1
        else:
            groups.append(key)
    if users or groups:
        raise PolicyInUse(policy_id, users=users, groups=tuple(sorted(groups)))
    await connection.execute(delete_from(policies).where(policies.c.id == policy_id))
    return Edit("delete", "policy", policy_id, before, None)


async def load_groups(connection: AsyncConnection) -> list[GroupPolicy]:
    """The policy of every group that has one, by name."""
    rows = await connection.execute(
        select(assignments).where(assignments.c.kind == "group").order_by(assignments.c.key)
    )
    return [GroupPolicy(group=row.key, policy_id=row.policy_id, priority=row.priority) for row in rows]


async def save_group(connection: AsyncConnection, rule: GroupPolicy) -> Edit:
    """Assign a policy to a group, instead of the one it may have. Raises `UnknownPolicy` if it is not there."""
    await pin(connection, rule.policy_id)
    after = {"policy_id": rule.policy_id, "priority": rule.priority}
    edit = Edit("assign", "group", rule.group, await _locked_of_group(connection, rule.group), after)
    if edit.changes:
        statement = upsert(connection, assignments, key=["kind", "key"], update=["policy_id", "priority"])
        await connection.execute(statement, [{"kind": "group", "key": rule.group, **after}])
    return edit


async def delete_group(connection: AsyncConnection, group: str) -> Edit:
    """Take its policy from a group."""
    before = await _locked_of_group(connection, group)
    await connection.execute(delete_from(assignments).where(*_of_group(group)))
    return Edit("delete", "group", group, before, None)


async def _locked(connection: AsyncConnection, policy_id: str) -> Document | None:
    mine = select(policies.c.document).where(policies.c.id == policy_id)
    text: str | None = await connection.scalar(mine.with_for_update())
    if text is None:
        return None
    try:
        # No digit of a number that somebody wrote there by hand is lost in a float.
        document: Document = json.loads(text, parse_float=str)
    except ValueError:
        # Who replaces or deletes it mends the table: see `_parse`.
        return {"document": text}
    return document


async def _locked_of_group(connection: AsyncConnection, group: str) -> Document | None:
    mine = select(assignments.c.policy_id, assignments.c.priority).where(*_of_group(group))
    row = (await connection.execute(mine.with_for_update())).mappings().one_or_none()
    return None if row is None else dict(row)


def _of_group(group: str) -> tuple[Any, Any]:
    return assignments.c.kind == "group", assignments.c.key == group


def _parse(policy_id: str, document: str) -> Policy:
    try:
        return parse_policy(json.loads(document, parse_float=Decimal))
    except (ValueError, InvalidPolicy) as error:
        raise StoreError(
            f"the policy {policy_id} in the database cannot be read ({error}): "
            "correct it in the table policies, or restore a backup"
        ) from error
