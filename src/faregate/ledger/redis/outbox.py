"""This node's outbox in Redis: a stream of the rows that the database does not have yet.

It is there for other nodes, which write the rows of one that died. Records of charges are appended by the call that
charges; people and refusals, which charge nothing, by a call of their own that nobody waits for.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import msgspec

from faregate.directory import User
from faregate.ledger.port import LedgerAway
from faregate.ledger.redis.calls import Calls
from faregate.ledger.redis.link import Link
from faregate.ledger.redis.names import Keys
from faregate.ledger.redis.owed import Owed
from faregate.ledger.redis.scripts import load
from faregate.ledger.redis.standing import Standing
from faregate.ledger.redis.strays import Strays
from faregate.records import UsageRecord

SETTLED_KEPT_SECONDS = 900
"""How long a settled id is known after its record is in the database: longer than any repetition is under way."""

WRITTEN_AT_ONCE = 50
"""Rows that one call takes out of the outbox: every request waits for Redis meanwhile."""

AUDITED_AT_ONCE = 1000
"""Rows of this node's outbox that one audit looks at."""

WRITTEN, INHERIT = map(load, ("written", "inherit"))
SCRIPTS = (WRITTEN, INHERIT)

_encoder = msgspec.json.Encoder()
_records = msgspec.json.Decoder(UsageRecord)
_people = msgspec.json.Decoder(User)

log = logging.getLogger(__name__)


class NodeOutbox:
    """The rows of one node, and by which entry of its stream it knows each."""

    def __init__(self, link: Link, calls: Calls, owed: Owed, standing: Standing, keys: Keys, node: str) -> None:
        self._link = link
        self._calls = calls
        self._owed = owed
        self._standing = standing
        self._keys = keys
        self._node = node
        self._appending: dict[asyncio.Task[None], str] = {}
        self._strays = Strays()
        self.key = keys.outbox(node)
        self.entries: dict[str, bytes] = {}
        """The entry of each row, by request or user id."""

    def refused(self, record: UsageRecord) -> None:
        """Keep a refusal, if Redis is there."""
        self._append("r", record.facts.request_id, _encoder.encode(record))

    def met(self, user: User) -> None:
        """Keep a person as they are now, if Redis is there."""
        self._append("u", user.id, _encoder.encode(user))

    async def written(self, people: Sequence[User], records: Sequence[UsageRecord]) -> None:
        """The database has these now: they leave the stream."""
        ids = [record.facts.request_id for record in records]
        keys = [*ids, *(user.id for user in people)]
        if self._appending:
            # What the database was told faster than Redis.
            mine = set(keys)
            if under_way := [task for task, key in self._appending.items() if key in mine]:
                await asyncio.wait(under_way)
        entries = [self.entries.pop(key) for key in keys if key in self.entries]
        if entries:
            await self._owed.call("written", entries[0].decode(), lambda: self._written(entries, ids))

    async def inherit(self, limit: int, *, moment: bytes, now: float, lease: float) -> list[User | UsageRecord]:
        """At most `limit` rows that dead nodes did not write, and those of its own that this node does not know.

        They are this node's now. Raises `LedgerAway`.
        """
        reply = await self._calls.repeat(
            INHERIT,
            [self._keys.nodes, self._keys.grace, self.key],
            [moment, self._node, limit, self._keys.outboxes],
        )
        taken = list(zip(reply[1::3], reply[2::3], reply[3::3], strict=True))
        taken += await self._stray_rows(now, lease)
        for entry, field, _ in taken:
            self.entries[field[1:].decode()] = entry
        return [_people.decode(row) if field.startswith(b"u") else _records.decode(row) for _, field, row in taken]

    async def stop(self) -> None:
        """End what runs in the background."""
        for task in self._appending:
            task.cancel()
        await asyncio.gather(*self._appending, return_exceptions=True)

    async def _stray_rows(self, now: float, lease: float) -> list[tuple[bytes, bytes, bytes]]:
        """Rows that are strays for `lease` seconds: entry, field and row of each."""
        if await self._link.command("XLEN", self.key) <= len(self.entries):
            return []
        entries = await self._link.command("XRANGE", self.key, "-", "+", "COUNT", AUDITED_AT_ONCE)
        known = set(self.entries.values())
        rows = {entry: parts for entry, parts in entries if entry not in known}
        strays = self._strays.among(list(rows), now, lease)
        newer = [entry for entry in strays if rows[entry][0][1:].decode() in self.entries]
        if newer:
            await self._link.command("XDEL", self.key, *newer)
        return [(entry, *rows[entry]) for entry in strays if entry not in newer]

    async def _written(self, entries: Sequence[bytes], request_ids: Sequence[str]) -> None:
        # One call after the other, so that those of requests come between.
        for start in range(0, max(len(entries), len(request_ids)), WRITTEN_AT_ONCE):
            end = start + WRITTEN_AT_ONCE
            left, ids = entries[start:end], request_ids[start:end]
            about = (self._standing.namespace, SETTLED_KEPT_SECONDS, len(left))
            await self._link.call(WRITTEN, [self.key], [*about, *left, *ids])

    def _append(self, kind: str, key: str, row: bytes) -> None:
        if self._link.failure is None:
            task = asyncio.create_task(self._append_row(kind, key, row))
            self._appending[task] = key
            task.add_done_callback(self._appending.pop)

    async def _append_row(self, kind: str, key: str, row: bytes) -> None:
        try:
            entry = await self._link.command("XADD", self.key, "*", kind + key, row)
        except LedgerAway as error:
            log.info("a row is in memory only until the database has it: %s", error)
            return
        before = self.entries.get(key)
        self.entries[key] = entry
        if before is not None:
            # It said less, and whoever inherited it would believe it.
            self._link.command("XDEL", self.key, before).add_done_callback(_seen)


def _seen(future: asyncio.Future[Any]) -> None:
    # An audit makes up for what is lost here.
    if not future.cancelled():
        future.exception()
