"""Policies, and the groups they are assigned to, in the database."""

import json
from decimal import Decimal

from sqlalchemy import delete as delete_from
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from faregate.policy.document import InvalidPolicy, document_of, parse_policy
from faregate.policy.model import DEFAULT_POLICY_ID, GroupPolicy, Policy
from faregate.store.errors import PolicyInUse, StoreError, UnknownPolicy
from faregate.store.tables import group_policies, policies, users
from faregate.store.upsert import upsert


async def load(connection: AsyncConnection) -> list[Policy]:
    """Every policy, by id."""
    rows = await connection.execute(select(policies.c.id, policies.c.document).order_by(policies.c.id))
    return [_parse(policy_id, document) for policy_id, document in rows]


async def save(connection: AsyncConnection, policy: Policy) -> None:
    """Add `policy`, or replace the one with its id."""
    statement = upsert(connection, policies, key=["id"], update=["document"])
    await connection.execute(statement, [{"id": policy.id, "document": json.dumps(document_of(policy))}])


async def pin(connection: AsyncConnection, policy_id: str) -> None:
    """Let a policy stay at least until this transaction has ended. Raises `UnknownPolicy` if it is not there.

    To be called before any row of people or groups is locked: whoever locks those and a policy begins with the policy.
    """
    # There always is a default policy, in the database or not.
    if policy_id == DEFAULT_POLICY_ID:
        return
    mine = select(policies.c.id).where(policies.c.id == policy_id)
    if await connection.scalar(mine.with_for_update(read=True)) is None:
        raise UnknownPolicy(policy_id)


async def delete(connection: AsyncConnection, policy_id: str) -> None:
    """Delete a policy. Raises `PolicyInUse` while a person or a group is assigned to it."""
    # In a statement of its own: the next ones see what was assigned while this one waited.
    await connection.execute(select(policies.c.id).where(policies.c.id == policy_id).with_for_update())
    people = await connection.scalar(select(func.count()).select_from(users).where(users.c.policy_id == policy_id))
    groups = await connection.scalars(
        select(group_policies.c.group_name)
        .where(group_policies.c.policy_id == policy_id)
        .order_by(group_policies.c.group_name)
    )
    names = tuple(groups)
    if people or names:
        raise PolicyInUse(policy_id, users=people or 0, groups=names)
    await connection.execute(delete_from(policies).where(policies.c.id == policy_id))


async def load_groups(connection: AsyncConnection) -> list[GroupPolicy]:
    """The policy of every group that has one, by name."""
    rows = await connection.execute(select(group_policies).order_by(group_policies.c.group_name))
    return [GroupPolicy(group=row.group_name, policy_id=row.policy_id, priority=row.priority) for row in rows]


async def save_group(connection: AsyncConnection, rule: GroupPolicy) -> None:
    """Assign a policy to a group, instead of the one it may have. Raises `UnknownPolicy` if it is not there."""
    await pin(connection, rule.policy_id)
    statement = upsert(connection, group_policies, key=["group_name"], update=["policy_id", "priority"])
    row = {"group_name": rule.group, "policy_id": rule.policy_id, "priority": rule.priority}
    await connection.execute(statement, [row])


async def delete_group(connection: AsyncConnection, group: str) -> None:
    """Take its policy from a group."""
    await connection.execute(delete_from(group_policies).where(group_policies.c.group_name == group))


def _parse(policy_id: str, document: str) -> Policy:
    try:
        return parse_policy(json.loads(document, parse_float=Decimal))
    except (ValueError, InvalidPolicy) as error:
        raise StoreError(
            f"the policy {policy_id} in the database cannot be read ({error}): "
            "correct it in the table policies, or restore a backup"
        ) from error
