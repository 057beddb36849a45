"""Records by month: months are made ahead or on demand, and dropped as wholes; on SQLite their rows are deleted."""

import asyncio
from calendar import timegm
from contextlib import asynccontextmanager
from math import nextafter

import asyncpg
import pytest
from databases import DEADLINE, postgres_database
from old_databases import dialect_of
from rows import person, record

from faregate.records import Status
from faregate.store import engine, partitions
from faregate.store.errors import StoreUnavailable
from faregate.store.store import Store, UsageQuery

MONTHS = (
    "SELECT relname FROM pg_class JOIN pg_inherits ON inhrelid = pg_class.oid"
    " WHERE inhparent = 'usage_records'::regclass ORDER BY relname"
)


def at(year, month, day=1, second=0.0):
    return timegm((year, month, day, 0, 0, 0)) + second


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """On SQLite the lock is not given in turn: with many writers on a busy machine one may wait for long."""
    monkeypatch.setattr(engine, "POOL_TIMEOUT", 60.0)


@pytest.fixture
async def store(database):
    store = await Store.open(database.url, "node")
    yield store
    await store.close()


@pytest.fixture
def on_postgresql(postgres):
    return postgres_database(postgres)


@pytest.fixture
async def nodes(on_postgresql):
    stores = [await Store.open(on_postgresql.url, f"node-{n}") for n in range(3)]
    yield stores
    for store in stores:
        await store.close()


@asynccontextmanager
async def another_session(database):
    connection = await asyncpg.connect(database.url)
    try:
        yield connection
    finally:
        await connection.close()


def months(database):
    return [name.removeprefix("usage_records_") for (name,) in database.sql(MONTHS)]


async def make(store, *instants):
    async with store._write() as connection:
        await partitions.ensure(connection, instants)


async def make_ahead(store, now):
    async with store._write() as connection:
        await partitions.ahead(connection, now, months=3)


async def drop(store, instant):
    async with store._write() as connection:
        return await partitions.drop_before(connection, instant, no_more)


async def no_more(dropped):
    """Nothing has to be done before records are dropped."""


async def kept(store):
    return {row.request_id for row in await store.usage(UsageQuery(limit=10_000))}


async def test_months_are_made_ahead_over_the_turn_of_the_year_and_once(nodes, on_postgresql):
    for _ in range(2):
        await make_ahead(nodes[0], at(2026, 11, 30, 86_399))
        assert months(on_postgresql) == ["2026_11", "2026_12", "2027_01", "2027_02"]
    await make_ahead(nodes[1], at(2026, 12))
    assert months(on_postgresql) == ["2026_11", "2026_12", "2027_01", "2027_02", "2027_03"]


async def test_a_record_of_a_month_that_is_not_there_makes_it(store, database):
    batch = [record("old", at=at(2024, 2, 29)), record("new", at=at(2026, 12)), record("newer", at=at(2031, 7))]
    await store.write([person()], [*batch, record("pending", at=at(2025, 1), status=Status.PENDING, cost=None)])
    assert await kept(store) == {"old", "new", "newer", "pending"}
    if dialect_of(database) == "postgresql":
        assert months(database) == ["2024_02", "2025_01", "2026_12", "2031_07"]


async def test_the_last_moment_of_a_month_is_in_it(nodes, on_postgresql):
    # Nearer to the next month than a database can tell.
    await nodes[0].write([], [record("last", at=nextafter(at(2027, 1), 0)), record("first", at=at(2027, 1))])
    assert on_postgresql.sql("SELECT request_id FROM usage_records_2026_12") == [("last",)]
    assert on_postgresql.sql("SELECT request_id FROM usage_records_2027_01") == [("first",)]


async def test_many_nodes_may_need_the_same_new_months_at_once(nodes, on_postgresql):
    async def write(number, node):
        batch = [record(f"{number}-{month}", at=at(2026, month, 2)) for month in range(1, 7)]
        await node.write([person(f"u-{n}") for n in range(5)], batch)
        await make_ahead(node, at(2026, 4))

    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(*(write(f"{node}-{turn}", nodes[node]) for node in range(3) for turn in range(4)))
    assert months(on_postgresql) == [f"2026_{month:02}" for month in range(1, 8)]
    assert len(await kept(nodes[0])) == 3 * 4 * 6


async def test_making_a_month_waits_for_nobody_who_reads_or_writes(nodes, on_postgresql):
    await nodes[0].write([], [record(at=at(2026, 11))])
    async with another_session(on_postgresql) as other, other.transaction():
        await other.fetch("SELECT * FROM usage_records")
        await other.execute("UPDATE usage_records SET reason = 'busy'")
        async with asyncio.timeout(DEADLINE):
            await nodes[1].write([], [record("r-2", at=at(2026, 12))])
            await make(nodes[2], at(2027, 1))
    assert months(on_postgresql) == ["2026_11", "2026_12", "2027_01"]


async def test_a_month_that_another_node_dropped_is_made_again_for_a_late_record(nodes, on_postgresql):
    await nodes[0].write([], [record(at=at(2025, 5))])
    assert await drop(nodes[1], at(2026, 1)) == ["usage_records_2025_05"]
    await nodes[0].write([person()], [record("late", at=at(2025, 5)), record("in time", at=at(2026, 5))])
    assert await kept(nodes[0]) == {"late", "in time"}
    assert months(on_postgresql) == ["2025_05", "2026_05"]


async def test_only_months_that_have_ended_are_dropped(store, database):
    instants = {"2025-11": at(2025, 11, 30), "2025-12": at(2026, 1) - 1, "2026-01": at(2026, 1), "2026-02": at(2026, 2)}
    await store.write([], [record(name, at=instant) for name, instant in instants.items()])
    assert await drop(store, at(2025, 11, 30, 86_399.9)) == []
    assert await kept(store) == set(instants)
    dropped = await drop(store, at(2026, 1, 31, 86_399.9))
    on = {"postgresql": ["usage_records_2025_11", "usage_records_2025_12"], "sqlite": ["2 records"]}
    assert dropped == on[dialect_of(database)]
    assert await drop(store, at(2026, 1)) == []
    assert await kept(store) == {"2026-01", "2026-02"}


async def test_sqlite_deletes_a_part_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(partitions, "ROWS_AT_ONCE", 4)
    store = await Store.open(f"sqlite:///{tmp_path / 'faregate.db'}")
    await store.write([], [record(f"r-{n}", at=at(2025, 1) + n) for n in range(10)] + [record("kept", at=at(2026, 1))])
    assert [await drop(store, at(2026, 1)) for _ in range(4)] == [["4 records"], ["4 records"], ["2 records"], []]
    assert await kept(store) == {"kept"}
    await store.close()


async def test_nothing_is_dropped_while_somebody_reads_for_long(nodes, on_postgresql, monkeypatch):
    monkeypatch.setattr(partitions, "LOCK_SECONDS", 0.05)
    await nodes[0].write([], [record(at=at(2025, 5))])
    async with another_session(on_postgresql) as other, other.transaction():
        await other.fetch("SELECT * FROM usage_records")
        with pytest.raises(StoreUnavailable, match="lock timeout"):
            await drop(nodes[1], at(2026, 1))
    assert await kept(nodes[0]) == {"r-1"}
    assert await drop(nodes[1], at(2026, 1)) == ["usage_records_2025_05"]


async def test_what_an_administrator_attached_is_neither_dropped_nor_in_the_way(nodes, on_postgresql):
    on_postgresql.sql(
        "CREATE TABLE usage_records_archive PARTITION OF usage_records"
        " FOR VALUES FROM ('2020-01-01 00:00:00+00') TO ('2021-01-01 00:00:00+00')"
    )
    for name, year in (("archived", 2020), ("dropped", 2025)):
        await nodes[0].write([], [record(name, at=at(year, 6))])
    assert await drop(nodes[0], at(2026, 1)) == ["usage_records_2025_06"]
    assert await kept(nodes[0]) == {"archived"}
