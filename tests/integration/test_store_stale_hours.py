"""Which hours are to be added up anew: those in which something final was written, for as long as it takes."""

import asyncio
from math import nextafter

import asyncpg
import pytest
from databases import postgres_database, until_waiting
from old_databases import dialect_of
from rows import NOON, record

from faregate.records import Status
from faregate.store import rows
from faregate.store.store import Store

HOUR = 3600


@pytest.fixture
async def store(database):
    store = await Store.open(database.url, "node")
    yield store
    await store.close()


def stale(database):
    hour = {"sqlite": "hour / 1000000", "postgresql": "CAST(extract(epoch FROM hour) AS bigint)"}[dialect_of(database)]
    rows = database.sql(f"SELECT {hour}, touched FROM stale_hours ORDER BY hour")
    return [((int(when) - NOON) / HOUR, int(touched)) for when, touched in rows]


async def test_what_is_final_or_refused_makes_its_hour_stale_once_for_each_write(store, database):
    refused = record("refused", at=nextafter(NOON, 0), status=Status.REFUSED, requests=0)
    await store.write([], [record("a"), record("b", at=nextafter(NOON + HOUR, 0)), refused])
    assert stale(database) == [(-1, 1), (0, 1)]
    await store.write([], [record("c", at=NOON + 1), record("d", at=NOON + HOUR)])
    assert stale(database) == [(-1, 1), (0, 2), (1, 1)]


async def test_what_is_pending_is_not_added_up_before_it_is_final(store, database):
    pending = record(status=Status.PENDING, cost=None)
    await store.write([], [pending, record("another", at=NOON + HOUR)])
    assert stale(database) == [(1, 1)]
    await store.write([], [pending, record()])
    assert stale(database) == [(0, 1), (1, 1)]


async def test_what_was_there_already_makes_nothing_stale_again(store, database):
    for _ in range(2):
        await store.write([], [record(), record("a", at=NOON + HOUR)])
    assert stale(database) == [(0, 1), (1, 1)]


async def test_what_is_late_and_not_written_makes_nothing_stale(store, database):
    for _ in range(2):
        await store.next_era()
    await store.write([], [record(era=1)])
    assert stale(database) == []


async def test_who_adds_an_hour_up_waits_for_those_who_write_to_it(postgres):
    database = postgres_database(postgres)
    store = await Store.open(database.url)
    await store.write([], [record("before")])
    adder = await asyncpg.connect(database.url)
    async with store._write() as connection:
        await rows.write(connection, [record("under way")], node="node", era=0)
        taking = asyncio.create_task(adder.execute("DELETE FROM stale_hours"))
        await until_waiting(database, 1)
    await taking
    assert await adder.fetchval("SELECT count(*) FROM usage_records") == 2
    assert await adder.fetchval("SELECT count(*) FROM stale_hours") == 0
    await adder.close()
    await store.close()
