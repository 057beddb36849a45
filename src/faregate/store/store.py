"""The store: one object in front of the database. Each method is one transaction."""

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import Self, Unpack

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from faregate.directory import Assignment, User
from faregate.policy.model import GroupPolicy, Policy
from faregate.records import UsageRecord
from faregate.store import (
    audit,
    changes,
    eras,
    export,
    jobs,
    partitions,
    policies,
    reconciliations,
    reports,
    rollups,
    rows,
    schema,
    usage,
    users,
)
from faregate.store.audit import AuditRow, Edit, Kind
from faregate.store.carried import carry
from faregate.store.changes import Change
from faregate.store.engine import WRITES, open_engine, reported
from faregate.store.errors import RollupFailed, StoreUnavailable
from faregate.store.jobs import JobRun
from faregate.store.locks import Lock, take, try_take
from faregate.store.postgresql import Lines
from faregate.store.pulse import Pulse
from faregate.store.reconciliations import DayRow, DaySum
from faregate.store.reports import Every, Report
from faregate.store.rollups import By
from faregate.store.unbroken import unbroken
from faregate.store.usage import PAYER, ChargedRow, Payer, SpendRow, UsageQuery, UsageRow
from faregate.store.writer import Writer

__all__ = ["AuditRow", "Change", "ChargedRow", "Snapshot", "SpendRow", "Store", "UsageQuery", "UsageRow"]

PING_SECONDS = 0.8
"""An orchestrator asks whether a node is ready with a patience of a second."""

LAST_SECONDS = 2.0
"""How long the end waits for what is under way, each of whose statements may take as long as the driver allows."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a node needs to know before it serves anybody."""

    users: tuple[User, ...]
    policies: tuple[Policy, ...]
    group_policies: tuple[GroupPolicy, ...]


class Store:
    """Users, rules and usage, kept. Every method raises `StoreUnavailable` while the database is away."""

    def __init__(self, engine: AsyncEngine, node: str = "", lines: Lines | None = None) -> None:
        self._node = node
        self._lines = lines or Lines()
        self._reader = engine
        self._writer = engine.execution_options(**{WRITES: True})
        self._records = Writer(engine, node) if engine.dialect.name == "postgresql" else None
        self._pulse = Pulse(self._answers)

    @classmethod
    async def open(cls, url: str, node: str = "", migrate: bool = True) -> Self:
        """Connect to `sqlite:///file` or `postgresql://...` and bring the schema there up to date.

        `node` is the id of the node that writes through this store: what it leaves pending is its own.

        Raises `StoreError` if the URL cannot work, or a newer Faregate has been there, and, unless it may `migrate`,
        if an older one has.
        """
        lines = Lines()
        store = cls(open_engine(url, lines), node, lines)
        try:
            async with store._write() as connection:
                await schema.prepare(connection, migrate=migrate)
        except BaseException:
            await store.close()
            raise
        return store

    async def close(self) -> None:
        """Give all connections back, or break them off where that takes long."""
        closing = asyncio.create_task(self._close())
        await asyncio.wait({closing}, timeout=LAST_SECONDS)
        if not closing.done():
            self.break_off()
        await closing

    async def break_off_if_silent(self) -> None:
        """Break off what a database that says nothing keeps: each part that ends would wait for it by itself."""
        try:
            await self.ping(LAST_SECONDS)
        except StoreUnavailable:
            self.break_off()

    def break_off(self) -> None:
        """Wait for PostgreSQL no more: whatever is asked, and whatever waits, raises `StoreUnavailable` at once."""
        self._lines.break_off()

    async def ping(self, patience: float = PING_SECONDS) -> None:
        """Return if the database answers within `patience` seconds."""
        await self._pulse.feel(patience)

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

        What an administrator decided about a person who is known is not touched. On PostgreSQL, when somebody was last
        seen who changed in nothing else is kept by itself, whatever becomes of the rest. A record replaces the one of
        its request id only while that is `pending`. Late is what was charged in an era that is over, unless it was
        written before that ended.
        """
        if self._records is not None:
            with reported():
                if people:
                    people = await self._records.note(people)
                if not people:
                    return await self._records.write(records)
        async with self._write() as connection:
            era = await eras.hold(connection) if any(map(eras.is_fenced, records)) else eras.FIRST
            changed = await users.write(connection, people)
            late = await rows.write(connection, records, node=self._node, era=era)
            await changes.append(connection, "user", changed)
            return late

    @unbroken
    async def assign(self, user: User, *, actor: str, at: float, **decision: Unpack[Assignment]) -> None:
        """Keep what an administrator decided about `user`. Raises `UnknownPolicy` if that policy is not there.

        For the audit log, in this and the next four: `actor` asked for it, `at` (seconds since the epoch). What
        changes nothing is not logged.
        """
        async with self._decide() as connection:
            changed, edit = await users.assign(connection, user, decision)
            if edit.changes:
                await audit.append(connection, edit, actor=actor, at=at)
            await changes.append(connection, "user", changed)

    @unbroken
    async def save_policy(self, policy: Policy, *, actor: str, at: float) -> None:
        """Add `policy`, or replace the one with its id."""
        async with self._decide() as connection:
            await _tell(connection, await policies.save(connection, policy), actor, at)

    @unbroken
    async def delete_policy(self, policy_id: str, *, actor: str, at: float) -> None:
        """Delete a policy. Raises `PolicyInUse` while a person or a group is assigned to it."""
        async with self._decide() as connection:
            await _tell(connection, await policies.delete(connection, policy_id), actor, at)

    @unbroken
    async def save_group_policy(self, rule: GroupPolicy, *, actor: str, at: float) -> None:
        """Assign a policy to a group, instead of the one it may have. Raises `UnknownPolicy` if it is not there."""
        async with self._decide() as connection:
            await _tell(connection, await policies.save_group(connection, rule), actor, at)

    @unbroken
    async def delete_group_policy(self, group: str, *, actor: str, at: float) -> None:
        """Take its policy from a group."""
        async with self._decide() as connection:
            await _tell(connection, await policies.delete_group(connection, group), actor, at)

    @unbroken
    async def audit(
        self, limit: int = 100, before: int | None = None, kind: Kind | None = None, key: str | None = None
    ) -> list[AuditRow]:
        """At most `limit` changes by administrators, newest first: before the number `before`, and about one thing."""
        async with self._read() as connection:
            return await audit.page(connection, limit, before, kind, key)

    @unbroken
    async def usage(self, query: UsageQuery) -> list[UsageRow]:
        """A page of records, newest first. Raises `UnknownRecord` if `query.before` is not there."""
        async with self._read() as connection:
            return await usage.page(connection, query)

    @unbroken
    async def spend(
        self,
        since: float,
        until: float | None = None,
        before_era: int | None = None,
        by: Collection[Payer] = PAYER,
    ) -> list[SpendRow]:
        """What was charged to requests admitted since `since`, up to but without `until` (epoch seconds), summed.

        With `before_era` only what was charged in eras before that one; records of no era are of the first, 0. What is
        not in `by` is not told apart, and is empty.
        """
        async with self._read() as connection:
            return await usage.spend(connection, since, until, before_era, by)

    @unbroken
    async def recent(self, since: float, before_era: int | None = None) -> list[ChargedRow]:
        """Every charge to requests admitted since `since` (seconds since the epoch), oldest first.

        With `before_era` only what was charged in eras before that one; records of no era are of the first, 0.
        """
        async with self._read() as connection:
            return await usage.recent(connection, since, before_era)

    @unbroken
    async def export_page(
        self, since: float, until: float, after: UsageRow | None = None, limit: int = export.PAGE
    ) -> list[UsageRow]:
        """At most `limit` records from `since` up to but without `until` (epoch seconds), oldest first, after `after`.

        Who goes on after the last of each page gets every record that was there, once, whatever is written meanwhile.
        """
        async with self._read() as connection:
            return await export.page(connection, since, until, after, limit)

    @unbroken
    async def charged(self, since: float, until: float) -> tuple[list[DaySum], int]:
        """What was charged from `since` up to but without `until` (epoch seconds), for a comparison with OpenRouter.

        And how many requests of that time are pending: these are not in the sums.
        """
        async with self._read() as connection:
            sums = await reconciliations.charged(connection, since, until)
            return sums, await reconciliations.pending(connection, since, until)

    @unbroken
    async def save_reconciliation(self, day: date, rows: Sequence[DayRow], checked_at: float) -> None:
        """Keep what comparing `day` (UTC) gave, instead of what an earlier comparison gave."""
        async with self._write() as connection:
            await reconciliations.replace(connection, day, rows, checked_at)

    @unbroken
    async def reconciliation(self, day: date) -> list[DayRow]:
        """What the last comparison of `day` (UTC) gave, by model and provider."""
        async with self._read() as connection:
            return await reconciliations.load(connection, day)

    @unbroken
    async def refresh_rollups(self, limit: int, after: float = 0.0) -> int:
        """Add up at most `limit` stale hours after `after` (epoch seconds), oldest first; how many there were.

        Each is a transaction. Raises `JobTaken` while another node does it, `RollupFailed` if one cannot be added up.
        """
        async with self._read() as connection:
            hours = await rollups.stale(connection, limit, after)
        for hour in hours:
            try:
                async with self._write() as connection:
                    await try_take(connection, Lock.ROLLUPS)
                    await rollups.refresh(connection, hour)
            except DBAPIError as error:
                raise RollupFailed(hour, type(error).__name__) from error
        return len(hours)

    @unbroken
    async def report(self, by: By, since: float, until: float, every: Every | None = None, limit: int = 100) -> Report:
        """The sums of the dearest keys over the hours from `since` up to but without `until` (epoch seconds)."""
        async with self._read() as connection:
            return await reports.report(connection, by, since, until, every, limit)

    @unbroken
    async def make_partitions(self, now: float) -> None:
        """Make the partitions of the months to come. Raises `JobTaken` while another node does."""
        async with self._write() as connection:
            await try_take(connection, Lock.PARTITIONS)
            await partitions.ahead(connection, now)

    @unbroken
    async def drop_records(self, before: float) -> list[str]:
        """Drop some of the records of the months that ended by `before` (epoch seconds); what, in words.

        To be called until there is nothing. Raises `JobTaken` while another node does it, `StillStale`, and
        `StoreUnavailable` also while others read the records for long.
        """
        async with self._write() as connection:
            await try_take(connection, Lock.RETENTION)
            dropped = await partitions.drop_before(connection, before, partial(carry, connection))
            # Afterwards: nobody who writes has come in between.
            if dropped:
                await rollups.freeze(connection, partitions.Month.of(before).started_at)
            return dropped

    @unbroken
    async def note_job(self, run: JobRun) -> None:
        """Keep what came of a job, instead of its run before."""
        async with self._write() as connection:
            await jobs.note(connection, run)

    @unbroken
    async def jobs(self) -> list[JobRun]:
        """The last run of each job that has run on any node, by name."""
        async with self._read() as connection:
            return await jobs.load(connection)

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

    async def _close(self) -> None:
        if self._records is not None:
            await self._records.close()
        await self._reader.dispose()

    async def _answers(self) -> None:
        async with self._read() as connection:
            await connection.execute(text("SELECT 1"))

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

    @asynccontextmanager
    async def _decide(self) -> AsyncIterator[AsyncConnection]:
        """Like `_write`, for what an administrator decides: one such transaction at a time."""
        async with self._write() as connection:
            await take(connection, Lock.RULES)
            yield connection


async def _tell(connection: AsyncConnection, edit: Edit, actor: str, at: float) -> None:
    if edit.changes:
        await audit.append(connection, edit, actor=actor, at=at)
        await changes.append(connection, edit.kind, [edit.key])
