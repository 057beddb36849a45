"""The store: one object in front of the database. Each method is one transaction."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self, Unpack

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from faregate.directory import Assignment, User
from faregate.policy.model import GroupPolicy, Policy
from faregate.records import UsageRecord
from faregate.store import changes, eras, policies, rows, schema, usage, users
from faregate.store.changes import Change
from faregate.store.engine import WRITES, open_engine, reported
from faregate.store.unbroken import unbroken
from faregate.store.usage import ChargedRow, SpendRow, UsageQuery, UsageRow

__all__ = ["Change", "ChargedRow", "Snapshot", "SpendRow", "Store", "UsageQuery", "UsageRow"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a node needs to know before it serves anybody."""

    users: tuple[User, ...]
    policies: tuple[Policy, ...]
    group_policies: tuple[GroupPolicy, ...]


class Store:
    """Users, rules and usage, kept. Every method raises `StoreUnavailable` while the database is away."""

    def __init__(self, engine: AsyncEngine, node: str = "") -> None:
        self._node = node
        self._reader = engine
        self._writer = engine.execution_options(**{WRITES: True})

    @classmethod
    async def open(cls, url: str, node: str = "") -> Self:
        """Connect to `sqlite:///file` or `postgresql://...` and create what is missing.

        `node` is the id of the node that writes through this store: what it leaves pending is its own.

        Raises `StoreError` if the URL cannot work, or a newer Faregate has been there.
        """
        store = cls(open_engine(url), node)
        try:
            async with store._write() as connection:
                await schema.prepare(connection)
        except BaseException:
            await store.close()
            raise
        return store

    async def close(self) -> None:
        """Give all connections back."""
        await self._reader.dispose()

    @unbroken
    async def ping(self) -> None:
        """Return if the database answers."""
        async with self._read() as connection:
            await connection.execute(text("SELECT 1"))

    @unbroken
    async def salt(self) -> bytes:
        """32 secret random bytes, the same on every node and after every restart: the key of pseudonyms."""
        async with self._write() as connection:
            return await schema.salt(connection)

    @unbroken
    async def load(self) -> Snapshot:
        """Everybody and every rule."""
        async with self._read() as connection:
            return Snapshot(
                users=tuple(await users.load(connection)),
                policies=tuple(await policies.load(connection)),
                group_policies=tuple(await policies.load_groups(connection)),
            )

    @unbroken
    async def people(self, ids: Sequence[str]) -> list[User]:
        """Those with these ids; an id that nobody has is left out."""
        async with self._read() as connection:
            return await users.find(connection, ids)

    @unbroken
    async def rules(self) -> tuple[tuple[Policy, ...], tuple[GroupPolicy, ...]]:
        """Every policy, and the policy of every group that has one."""
        async with self._read() as connection:
            return tuple(await policies.load(connection)), tuple(await policies.load_groups(connection))

    @unbroken
    async def changes(self, after: int, limit: int = 1000) -> list[Change]:
        """At most `limit` changes of rules and people after the number `after`, in their order; none is missed."""
        async with self._read() as connection:
            return await changes.after(connection, after, limit)

    @unbroken
    async def newest_change(self) -> int:
        """The number of the last change, 0 if there is none. Asked before `load`, it says where to go on from."""
        async with self._read() as connection:
            return await changes.newest(connection)

    @unbroken
    async def oldest_change(self) -> int:
        """The number of the first change that is kept, 0 if there is none.

        Who had seen `after` and finds, after asking for `changes`, that the oldest is above `after + 1`, may have
        missed some: they must load everything.
        """
        async with self._read() as connection:
            return await changes.oldest(connection)

    @unbroken
    async def era(self) -> int:
        """The era of this moment."""
        async with self._read() as connection:
            return await eras.current(connection)

    @unbroken
    async def next_era(self, above: int = 0) -> int:
        """Begin a new era; its number, more than `above`. No charge of an earlier one is written from now on."""
        async with self._write() as connection:
            return await eras.begin(connection, above)

    @unbroken
    async def write(self, people: Sequence[User], records: Sequence[UsageRecord]) -> list[UsageRecord]:
        """Keep people and records, all or nothing; harmless to repeat. Returns the late records, alone not written.

        What an administrator decided about a person who is known is not touched. A record replaces the one of its
        request id only while that is `pending`. Late is what was charged in an era that is over, unless it was written
        before that ended.
        """
        async with self._write() as connection:
            era = await eras.hold(connection) if any(map(eras.is_fenced, records)) else eras.FIRST
            changed = await users.write(connection, people)
            late = await rows.write(connection, records, node=self._node, era=era)
            await changes.append(connection, "user", changed)
            return late

    @unbroken
    async def assign(self, user: User, **decision: Unpack[Assignment]) -> None:
        """Keep what an administrator decided about `user`. Raises `UnknownPolicy` if that policy is not there."""
        async with self._write() as connection:
            await changes.append(connection, "user", await users.assign(connection, user, decision))

    @unbroken
    async def save_policy(self, policy: Policy) -> None:
        """Add `policy`, or replace the one with its id."""
        async with self._write() as connection:
            await policies.save(connection, policy)
            await changes.append(connection, "policy", [policy.id])

    @unbroken
    async def delete_policy(self, policy_id: str) -> None:
        """Delete a policy. Raises `PolicyInUse` while a person or a group is assigned to it."""
        async with self._write() as connection:
            await policies.delete(connection, policy_id)
            await changes.append(connection, "policy", [policy_id])

    @unbroken
    async def save_group_policy(self, rule: GroupPolicy) -> None:
        """Assign a policy to a group, instead of the one it may have. Raises `UnknownPolicy` if it is not there."""
        async with self._write() as connection:
            await policies.save_group(connection, rule)
            await changes.append(connection, "group", [rule.group])

    @unbroken
    async def delete_group_policy(self, group: str) -> None:
        """Take its policy from a group."""
        async with self._write() as connection:
            await policies.delete_group(connection, group)
            await changes.append(connection, "group", [group])

    @unbroken
    async def usage(self, query: UsageQuery) -> list[UsageRow]:
        """A page of records, newest first. Raises `UnknownRecord` if `query.before` is not there."""
        async with self._read() as connection:
            return await usage.page(connection, query)

    @unbroken
    async def spend(self, since: float, until: float | None = None, before_era: int | None = None) -> list[SpendRow]:
        """What was charged to requests admitted since `since`, up to but without `until` (epoch seconds), summed.

        With `before_era` only what was charged in eras before that one; records of no era are of the first, 0.
        """
        async with self._read() as connection:
            return await usage.spend(connection, since, until, before_era)

    @unbroken
    async def recent(self, since: float, before_era: int | None = None) -> list[ChargedRow]:
        """Every charge to requests admitted since `since` (seconds since the epoch), oldest first.

        With `before_era` only what was charged in eras before that one; records of no era are of the first, 0.
        """
        async with self._read() as connection:
            return await usage.recent(connection, since, before_era)

    @unbroken
    async def pending(self) -> list[UsageRecord]:
        """The records of all nodes whose cost is not known, or not charged yet, oldest first."""
        async with self._read() as connection:
            return await rows.pending(connection)

    @unbroken
    async def claim_pending(self, alive: Sequence[str], limit: int) -> list[UsageRecord]:
        """At most `limit` pending records that neither this node nor one of `alive` owns, oldest first.

        They are this node's from now on: of several that ask at once, one gets each.
        """
        async with self._write() as connection:
            return await rows.claim(connection, self._node, alive, limit)

    @unbroken
    async def settled(self, request_ids: Sequence[str]) -> set[str]:
        """Those of `request_ids` that have a final record."""
        async with self._read() as connection:
            return await rows.settled(connection, request_ids)

    @asynccontextmanager
    async def _read(self) -> AsyncIterator[AsyncConnection]:
        with reported():
            async with self._reader.connect() as connection:
                yield connection

    @asynccontextmanager
    async def _write(self) -> AsyncIterator[AsyncConnection]:
        with reported():
            async with self._writer.begin() as connection:
                yield connection
