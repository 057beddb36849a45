"""Writes batches of records to PostgreSQL, and when people were seen: one statement each, a transaction of its own.

It goes over a connection of the pool that it keeps: to have one tried, begun, committed and given back for every batch
took more work than the batch. Whether it is still there shows when it is used; a batch is harmless to repeat.
"""

import asyncio
from collections.abc import Sequence
from itertools import islice
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from faregate.directory import User
from faregate.records import UsageRecord
from faregate.store import eras, inserts, partitions, postgresql, rows, sightings, users
from faregate.store.errors import StoreUnavailable

ROWS_AT_ONCE = 50
"""Rows that are encoded before those are served who wait for the event loop: a whole batch takes milliseconds."""


class Writer:
    """Keeps the records of one node, and when it saw people. Of several batches at once each waits for its turn."""

    def __init__(self, engine: AsyncEngine, node: str) -> None:
        self._engine = engine
        self._node = node
        self._turn = asyncio.Lock()
        self._kept: AsyncConnection | None = None
        self._driver: Any = None
        self._errors = postgresql.driver_errors()

    async def write(self, records: Sequence[UsageRecord]) -> list[UsageRecord]:
        """Keep `records`, all or nothing, and return those that are late, as `rows.write` does.

        Raises `StoreUnavailable`, what `engine.reported` turns into it, and the error of the driver if the database
        refuses a record.
        """
        fenced = [record.era for record in records if eras.is_fenced(record)]
        async with self._turn:
            if not fenced:
                await self._insert(rows.batch(records, eras.FIRST), None)
                return []
            # At first as if none were late, which is almost always so. If one is, nothing was written.
            era = min(fenced)
            batch = rows.batch(records, era)
            while (now := await self._insert(batch, era)) > era:
                era = now
                batch = rows.batch(records, era)
        if not batch.late:
            return []
        async with self._engine.connect() as connection:
            return await rows.unwritten(connection, batch.late)

    async def note(self, people: Sequence[User]) -> list[User]:
        """Keep when those of `people` were last seen whom the database has in the same state; returns the others.

        Raises what `write` raises.
        """
        latest = users.latest_of(people).values()
        async with self._turn:
            noted = await self._run(sightings.NOTE, sightings.document(latest))
        ids = frozenset(noted or ())
        return [user for user in latest if user.id not in ids]

    async def close(self) -> None:
        """Give the connection back, after what is under way."""
        async with self._turn:
            if self._kept is not None:
                await self._kept.close()
                self._kept = None

    async def _insert(self, batch: rows.Batch, era: int | None) -> int:
        """Write `batch`, with the months that it needs, unless the era is above `era`; the era, 0 if that is None."""
        document = await self._document(batch)
        if era is None:
            await self._run_with_months(batch, inserts.POSTGRESQL, document, batch.hours())
            return eras.FIRST
        return eras.told(await self._run_with_months(batch, inserts.FENCED, document, batch.hours(), era))

    async def _document(self, batch: rows.Batch) -> str:
        values = batch.values(self._node)
        parts: list[str] = []
        while some := list(islice(values, ROWS_AT_ONCE)):
            if parts:
                await asyncio.sleep(0)
            parts.append(inserts.part(some))
        return inserts.document(parts)

    async def _run_with_months(self, batch: rows.Batch, statement: str, *arguments: object) -> Any:
        try:
            return await self._run(statement, *arguments)
        except self._errors as error:
            if not partitions.is_missing(error):
                raise
        async with self._engine.begin() as connection:
            await partitions.ensure(connection, batch.instants())
        return await self._run(statement, *arguments)

    async def _run(self, statement: str, *arguments: object) -> Any:
        driver = await self._connected()
        try:
            return await driver.fetchval(statement, *arguments)
        except self._errors as error:
            if postgresql.is_our_fault(error):
                raise
            await self._let_go()
            # Without PostgreSQL's DETAIL, which quotes data.
            raise StoreUnavailable(f"the database did not do its work ({error.args[0]}); try again") from error
        except OSError:
            # A time-out is one too.
            await self._let_go()
            raise

    async def _connected(self) -> Any:
        """The driver's connection, a new one if the server has ended the last one."""
        if self._kept is not None and self._driver.is_closed():
            await self._let_go()
        if self._kept is None:
            kept = await self._engine.connect()
            self._driver = (await kept.get_raw_connection()).driver_connection
            self._kept = kept
        return self._driver

    async def _let_go(self) -> None:
        if self._kept is not None:
            kept, self._kept = self._kept, None
            await kept.invalidate()
            await kept.close()
