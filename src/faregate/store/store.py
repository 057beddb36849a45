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
from faregate.store import policies, schema, usage, users
from faregate.store.engine import WRITES, open_engine, reported
from faregate.store.usage import ChargedRow, SpendRow, UsageQuery, UsageRow

__all__ = ["ChargedRow", "Snapshot", "SpendRow", "Store", "UsageQuery", "UsageRow"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a node needs to know before it serves anybody."""

    users: tuple[User, ...]
    policies: tuple[Policy, ...]
    group_policies: tuple[GroupPolicy, ...]


class Store:
    """Users, rules and usage, kept. Every method raises `StoreUnavailable` while the database is away."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._reader = engine
        self._writer = engine.execution_options(**{WRITES: True})

    @classmethod
    async def open(cls, url: str) -> Self:
        """Connect to `sqlite:///file` or `postgresql://...` and create what is missing.

        Raises `StoreError` if the URL cannot work, or a newer Faregate has been there.
        """
        store = cls(open_engine(url))
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

    async def ping(self) -> None:
        """Return if the database answers."""
        async with self._read() as connection:
            await connection.execute(text("SELECT 1"))

    async def salt(self) -> bytes:
        """32 secret random bytes, the same on every node and after every restart: the key of pseudonyms."""
        async with self._write() as connection:
            return await schema.salt(connection)

    async def load(self) -> Snapshot:
        """Everybody and every rule."""
        async with self._read() as connection:
            return Snapshot(
                users=tuple(await users.load(connection)),
                policies=tuple(await policies.load(connection)),
                group_policies=tuple(await policies.load_groups(connection)),
            )

    async def write(self, people: Sequence[User], records: Sequence[UsageRecord]) -> None:
        """Keep people and records, all or nothing; harmless to repeat.

        What an administrator decided about a person who is known is not touched. A record replaces the one of its
        request id only while that is `pending`.
        """
        async with self._write() as connection:
            await users.write(connection, people)
            await usage.write(connection, records)

    async def assign(self, user: User, **changes: Unpack[Assignment]) -> None:
        """Keep what an administrator decided about `user`."""
        async with self._write() as connection:
            await users.assign(connection, user, changes)

    async def save_policy(self, policy: Policy) -> None:
        """Add `policy`, or replace the one with its id."""
        async with self._write() as connection:
            await policies.save(connection, policy)

    async def delete_policy(self, policy_id: str) -> None:
        """Delete a policy. Raises `PolicyInUse` while a person or a group is assigned to it."""
        async with self._write() as connection:
            await policies.delete(connection, policy_id)

    async def save_group_policy(self, rule: GroupPolicy) -> None:
        """Assign a policy to a group, instead of the one it may have."""
        async with self._write() as connection:
            await policies.save_group(connection, rule)

    async def delete_group_policy(self, group: str) -> None:
        """Take its policy from a group."""
        async with self._write() as connection:
            await policies.delete_group(connection, group)

    async def usage(self, query: UsageQuery) -> list[UsageRow]:
        """A page of records, newest first. Raises `UnknownRecord` if `query.before` is not there."""
        async with self._read() as connection:
            return await usage.page(connection, query)

    async def spend(self, since: float, until: float | None = None) -> list[SpendRow]:
        """What was charged to requests admitted since `since`, up to but without `until` (epoch seconds), summed."""
        async with self._read() as connection:
            return await usage.spend(connection, since, until)

    async def recent(self, since: float) -> list[ChargedRow]:
        """Every charge to requests admitted since `since` (seconds since the epoch), oldest first."""
        async with self._read() as connection:
            return await usage.recent(connection, since)

    async def pending(self) -> list[UsageRecord]:
        """The records whose cost is not known yet, oldest first."""
        async with self._read() as connection:
            return await usage.pending(connection)

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
