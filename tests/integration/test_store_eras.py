"""Eras: what was charged in one that is over is not written any more, so that its sum never changes."""

import asyncio
from decimal import Decimal

import pytest
from databases import DEADLINE, postgres_database, until_waiting
from rows import NOON, person, record

from faregate.records import Status
from faregate.store import engine
from faregate.store.locks import Lock, take
from faregate.store.store import SpendRow, Store, UsageQuery

NODES = ("a", "b", "c")
MODELS = ("openai/gpt-4o",)


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """On SQLite the lock is not given in turn: with many writers on a busy machine one may wait for long."""
    monkeypatch.setattr(engine, "POOL_TIMEOUT", 60.0)


@pytest.fixture
async def nodes(database):
    stores = [await Store.open(database.url, node) for node in NODES]
    yield stores
    for store in stores:
        await store.close()


@pytest.fixture
def store(nodes):
    return nodes[0]


async def written(store):
    return {row.request_id for row in await store.usage(UsageQuery(limit=10_000))}


async def test_eras_count_from_nought_on_all_nodes_and_over_restarts(nodes, database):
    assert [await node.era() for node in nodes] == [0, 0, 0]
    assert [await node.next_era() for node in nodes] == [1, 2, 3]
    again = await Store.open(database.url)
    assert await again.era() == 3
    await again.close()


async def test_an_era_is_above_the_one_that_the_ledger_had(nodes):
    assert [await nodes[0].next_era(above=7), await nodes[1].next_era(above=3)] == [8, 9]


async def test_of_many_that_begin_an_era_at_once_each_gets_its_own(nodes):
    begun = await asyncio.gather(*(node.next_era() for node in nodes for _ in range(6)))
    assert sorted(begun) == list(range(1, 19))


@pytest.mark.parametrize("people", [(), (person(),)], ids=["alone", "with a person"])
async def test_a_charge_of_an_era_that_is_over_comes_back_unwritten_and_all_else_is_written(store, people):
    for _ in range(3):
        await store.next_era()
    late = [record("late of 1", era=1), record("late of 2", era=2, status=Status.FAILED)]
    others = [
        record("of this era", era=3),
        record("of a ledger that is not shared", era=0),
        record("refused", status=Status.REFUSED, requests=0, era=1),
        record("pending", status=Status.PENDING, cost=None, era=1),
    ]
    assert await store.write(people, [*late, *others]) == late
    assert await written(store) == {other.facts.request_id for other in others}
    assert (await store.load()).users == people


async def test_what_is_late_is_written_when_it_was_charged_again(store):
    await store.next_era()
    late = record(era=1, cost_nano=5)
    await store.next_era()
    assert await store.write([], [late]) == [late]
    assert await store.write([], [late, record(era=2, cost_nano=5)]) == []
    assert await store.spend(0) == [SpendRow("zoe", ("staff",), MODELS, 1, 0, 5)]


async def test_what_was_written_before_its_era_ended_is_not_late(store):
    await store.next_era()
    assert await store.write([], [record("in time", era=1, cost_nano=5)]) == []
    era = await store.next_era()
    again = [record("in time", era=1, cost_nano=5), record("late", era=1, cost_nano=7)]
    assert await store.write([], again) == again[1:]
    assert [row.nano for row in await store.spend(0, before_era=era)] == [5]


async def test_a_late_charge_leaves_its_pending_record_for_somebody_to_settle(store):
    await store.next_era()
    await store.next_era()
    pending = record(status=Status.PENDING, cost=Decimal("0.5"), cost_nano=500_000_000)
    late = record(era=1, cost=Decimal("0.5"), cost_nano=500_000_000)
    assert await store.write([], [late, pending]) == [late]
    assert await store.pending() == [pending]


async def test_sums_before_an_era_are_of_what_was_charged_in_earlier_ones(store):
    await store.write([], [record("r-0", at=NOON, cost_nano=1)])
    for era, moment in ((1, 0), (2, 1), (3, 2)):
        await store.next_era()
        await store.write([], [record(f"r-{era}", at=NOON + moment, era=era, cost_nano=10**era)])

    async def spent(*when, **more):
        return [row.nano for row in await store.spend(*when, **more)]

    assert await spent(0) == [1111]
    assert await spent(0, before_era=4) == [1111]
    assert await spent(0, before_era=3) == [111]
    assert await spent(NOON + 1, before_era=3) == [100]
    assert await spent(NOON, NOON + 1, before_era=3) == [11]
    assert await spent(0, before_era=1) == [1]
    assert await spent(0, before_era=0) == []
    assert [row.request_id for row in await store.recent(NOON)] == ["r-0", "r-1", "r-2", "r-3"]
    assert [row.request_id for row in await store.recent(NOON, before_era=3)] == ["r-0", "r-1", "r-2"]
    assert [row.request_id for row in await store.recent(NOON + 1, before_era=3)] == ["r-2"]


async def test_a_pending_record_brings_its_era_back(store):
    waiting = record(status=Status.PENDING, cost=None, era=4)
    await store.write([], [waiting])
    assert await store.pending() == [waiting]


async def test_the_sum_before_an_era_is_the_same_for_ever_however_many_write(nodes):
    sums = {}
    refused = []

    async def write(node, name):
        for turn in range(10):
            charge = record(f"{name}-{turn:02}", era=await node.era(), cost_nano=1)
            while late := await node.write([person(f"u-{turn % 3}", seen=NOON + turn)], [charge]):
                refused.extend(late)
                charge = record(f"{name}-{turn:02}", era=await node.era(), cost_nano=1)

    async def begin(node):
        for _ in range(10):
            era = await node.next_era()
            sums[era] = sum(row.nano for row in await node.spend(0, before_era=era))

    await nodes[0].next_era()
    stale = record("stale", era=1, cost_nano=1)
    writers = [write(node, f"{name}{n}") for name, node in zip(NODES, nodes, strict=True) for n in range(2)]
    await asyncio.gather(*writers, begin(nodes[0]), begin(nodes[1]))
    assert await nodes[2].write([], [stale]) == [stale]
    assert sorted(sums) == list(range(2, 22))
    for era, before in sums.items():
        assert sum(row.nano for row in await nodes[0].spend(0, before_era=era)) == before
    assert sum(row.nano for row in await nodes[0].spend(0)) == 10 * 6
    assert not {"stale"} & await written(nodes[0])


@pytest.fixture
def on_postgresql(postgres):
    return postgres_database(postgres)


async def test_an_era_ends_after_the_writes_under_way_and_before_those_that_come(on_postgresql):
    first, second, third = [await Store.open(on_postgresql.url, node) for node in NODES]
    # As long as somebody looks through the table, nobody writes to it.
    looking = await third._reader.connect()
    await looking.exec_driver_sql("LOCK TABLE usage_records IN SHARE MODE")
    await first.next_era()
    under_way = asyncio.create_task(first.write([person()], [record("under way", era=1)]))
    await until_waiting(on_postgresql, 1)
    following = asyncio.create_task(second.next_era())
    await until_waiting(on_postgresql, 2)
    # It waits for the one that begins an era: a stream of writers does not put that off.
    late = [record("late", era=1)]
    coming = asyncio.create_task(third.write([person()], late))
    await until_waiting(on_postgresql, 3)
    unconcerned = asyncio.create_task(second.write([], [record("unconcerned")]))
    await until_waiting(on_postgresql, 4)
    assert not any(task.done() for task in (under_way, following, coming, unconcerned))
    await looking.close()
    assert (await under_way, await following, await coming, await unconcerned) == ([], 2, late, [])
    assert await written(first) == {"under way", "unconcerned"}
    for store in (first, second, third):
        await store.close()


async def test_a_new_era_is_read_by_who_waited_for_it(on_postgresql):
    first, second = [await Store.open(on_postgresql.url, node) for node in NODES[:2]]
    async with second._write() as connection:
        await take(connection, Lock.ERA)
        waiting = asyncio.create_task(first.write([], [record(era=1)]))
        await until_waiting(on_postgresql, 1)
        await connection.exec_driver_sql("UPDATE meta SET value = '2' WHERE key = 'era'")
    assert await waiting == [record(era=1)]
    for store in (first, second):
        await store.close()


async def test_writers_of_the_same_rows_and_new_eras_do_not_lock_each_other_out(nodes):
    async def write(node):
        for turn in range(8):
            era = await node.era()
            batch = [record(f"r-{n}", status=Status.PENDING, cost=None) for n in range(turn)]
            await node.write(
                [person(f"u-{n}", seen=NOON + turn) for n in range(5)], [*batch, record(f"c-{turn}", era=era)]
            )

    async def begin(node):
        for _ in range(8):
            await node.next_era()

    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(*(write(node) for node in nodes for _ in range(2)), *(begin(node) for node in nodes))
    assert await nodes[0].era() == 24
