"""Pages for an export: every record of a span of time, once, oldest first, whatever is written meanwhile."""

import re
from decimal import Decimal

import pytest
from rows import NOON, record
from sqlalchemy import event

from faregate.records import Source, Status
from faregate.store.store import Store

DAY = 86_400.0
EVER = (0.0, NOON + 1000 * DAY)


@pytest.fixture
async def store(database):
    store = await Store.open(database.url)
    yield store
    await store.close()


async def exported(store, since=EVER[0], until=EVER[1], limit=3):
    rows, after = [], None
    while page := await store.export_page(since, until, after, limit):
        assert len(page) <= limit
        rows.extend(page)
        after = page[-1]
    return rows


async def ids(store, *span, **more):
    return [row.request_id for row in await exported(store, *span, **more)]


async def test_a_database_without_records_has_no_page(store):
    assert await store.export_page(*EVER) == []


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
async def test_pages_follow_each_other_from_the_oldest_to_the_newest(store, limit):
    await store.write([], [record(f"r-{n}", at=NOON - n * 60) for n in range(7)])
    assert await ids(store, limit=limit) == [f"r-{n}" for n in range(6, -1, -1)]


async def test_records_of_one_instant_are_each_on_one_page(store):
    await store.write([], [record(f"r-{n}", at=NOON) for n in range(8)])
    await store.write([], [record("before", at=NOON - 1e-6), record("after", at=NOON + 1e-6)])
    assert await ids(store) == ["before", *(f"r-{n}" for n in range(8)), "after"]


async def test_records_of_many_months_are_in_one_order(store):
    moments = [NOON + n * 20 * DAY for n in range(10)]
    await store.write([], [record(f"r-{n}", at=at) for n, at in enumerate(moments)])
    assert await ids(store) == [f"r-{n}" for n in range(10)]


async def test_since_is_in_and_until_is_not(store):
    await store.write([], [record(f"r-{n}", at=NOON + n) for n in range(5)])
    assert await ids(store, NOON + 1, NOON + 4) == ["r-1", "r-2", "r-3"]


async def test_a_record_is_exported_as_it_is_kept(store):
    kept = record(
        cost=Decimal("123456.000000000001"),
        status=Status.ABORTED,
        source=Source.GENERATION,
        provider="Groq",
        chat_id="c-1",
        groups=("physics, applied", "staff"),
        ttft_ms=12,
    )
    await store.write([], [kept, record("r-2", at=NOON + 0.000001, status=Status.PENDING, cost=None)])
    first, second = await exported(store)
    assert (first.cost, first.status, first.source) == (kept.cost, Status.ABORTED, Source.GENERATION)
    assert (first.provider, first.chat_id, first.groups, first.ttft_ms) == ("Groq", "c-1", kept.facts.groups, 12)
    assert (second.cost, second.status, second.source, second.ts) == (None, Status.PENDING, None, NOON + 0.000001)


async def test_what_is_written_meanwhile_neither_hides_nor_repeats_a_record(store):
    await store.write([], [record(f"r-{n}", at=NOON + n) for n in range(6)])
    first = await store.export_page(*EVER, None, 3)
    late = [record(f"late-{n}", at=NOON + n + 0.5) for n in range(6)]
    await store.write([], late)
    second = await store.export_page(*EVER, first[-1], 100)
    seen = [row.request_id for row in (*first, *second)]
    assert [name for name in seen if name.startswith("r-")] == [f"r-{n}" for n in range(6)]
    assert len(set(seen)) == len(seen)


async def test_nothing_is_held_open_between_two_pages(store, database):
    await store.write([], [record(f"r-{n}", at=NOON + n) for n in range(4)])
    (last,) = await store.export_page(*EVER, None, 1)
    # Who still had a transaction, or a cursor, would keep the table from being emptied.
    if database.url.startswith("postgresql"):
        database.sql("SET lock_timeout = '5s'; TRUNCATE usage_records")
    else:
        database.sql("DELETE FROM usage_records")
    assert await store.export_page(*EVER, last) == []


async def test_a_page_is_found_by_the_index_on_time(store):
    await store.write([], [record(f"r-{n}", at=NOON + n) for n in range(50)])
    (last,) = await store.export_page(*EVER, None, 1)
    plan = "\n".join(await plan_of(store, store.export_page(*EVER, last)))
    assert re.search(
        r"USING INDEX ix_usage_records_ts_request_id \(ts>\? AND ts<\?\)|Index Scan using usage_records_", plan
    )
    assert not re.search(r"TEMP B-TREE|Sort|Seq Scan", plan)


async def plan_of(store, asking):
    """How the database finds what `asking` asks it for."""
    asked = []

    def note(connection, cursor, statement, parameters, context, executemany):
        asked.append((statement, parameters))

    event.listen(store._reader.sync_engine, "before_cursor_execute", note)
    await asking
    event.remove(store._reader.sync_engine, "before_cursor_execute", note)
    ((statement, parameters),) = [one for one in asked if one[0].startswith("SELECT")]
    async with store._reader.connect() as connection:
        if connection.dialect.name == "sqlite":
            plan = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        else:
            # A table as small as this one is read whole, unless that is not allowed.
            await connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            plan = await connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)
        return [row[-1] for row in plan]
