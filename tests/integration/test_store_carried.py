"""Limits over all time go on counting what retention has dropped."""

from calendar import timegm

import pytest
from rows import record

from faregate.records import Status
from faregate.store import partitions
from faregate.store.store import Store

NOVEMBER = timegm((2026, 11, 1, 0, 0, 0))
MAY = timegm((2026, 5, 3, 0, 0, 0))


@pytest.fixture
async def store(database):
    store = await Store.open(database.url, "node")
    yield store
    await store.close()


async def all_time(store):
    sums = {}
    for row in await store.spend(0.0):
        before = sums.get((row.user_id, row.groups, row.models), (0, 0, 0))
        amounts = (row.requests, row.tokens, row.nano)
        sums[row.user_id, row.groups, row.models] = tuple(map(sum, zip(before, amounts, strict=True)))
    return sums


async def drop_all(store, before):
    while await store.refresh_rollups(100):
        pass
    dropped = []
    while some := await store.drop_records(before):
        dropped += some
    return dropped


async def test_what_was_charged_in_months_that_are_dropped_is_charged_for_all_time(store, monkeypatch):
    monkeypatch.setattr(partitions, "ROWS_AT_ONCE", 3)
    months = (MAY, MAY + 86_400 * 40, NOVEMBER + 60)
    rows = [
        record(f"r{month}-{n}", user_id=f"u{n % 2}", at=month + n, cost_nano=10 + n)
        for month in months
        for n in range(4)
    ]
    await store.write([], [*rows, record("no", at=MAY, status=Status.REFUSED)])
    before = await all_time(store)
    assert sum(nano for _, _, nano in before.values()) == 3 * (10 + 11 + 12 + 13)

    assert await drop_all(store, float(NOVEMBER))

    assert await all_time(store) == before
    assert await drop_all(store, float(NOVEMBER)) == []
    assert await all_time(store) == before
    kept = await store.spend(float(NOVEMBER))
    assert sum(row.nano for row in kept) == 10 + 11 + 12 + 13


async def test_months_that_are_dropped_one_after_the_other_add_up(store):
    june = timegm((2026, 6, 1, 0, 0, 0))
    await store.write([], [record("may", at=MAY, cost_nano=5), record("june", at=june, cost_nano=7)])
    before = await all_time(store)
    for end in (june, NOVEMBER):
        assert await drop_all(store, float(end))
        assert await all_time(store) == before
