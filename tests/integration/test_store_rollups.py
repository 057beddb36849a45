"""What records add up to, hour by hour: exact whoever writes, whenever, and kept when the records are not."""

import asyncio
from collections import defaultdict
from decimal import Decimal

import pytest
from databases import DEADLINE, postgres_database, until_waiting
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows import NOON, record

from faregate.records import Status, altered
from faregate.store import engine, reports, rollups, rows
from faregate.store.errors import JobTaken, RollupFailed, StillStale
from faregate.store.locks import Lock, try_take
from faregate.store.reports import Every
from faregate.store.rollups import By
from faregate.store.spans import DAY, HOUR
from faregate.store.store import Store, UsageQuery

MIDNIGHT = NOON - 12 * HOUR
LONG_AGO = MIDNIGHT - 400 * DAY
EVER = {"since": LONG_AGO - DAY, "until": NOON + 10 * DAY, "limit": 500}
STEPS = {Every.HOUR: HOUR, Every.DAY: DAY}
SUMS = ("requests", "refused", "failed", "prompt_tokens", "completion_tokens", "total_tokens", "cost")


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """On SQLite the lock is not given in turn: with many writers on a busy machine one may wait for long."""
    monkeypatch.setattr(engine, "POOL_TIMEOUT", 60.0)


@pytest.fixture
async def store(database):
    store = await Store.open(database.url, "one")
    yield store
    await store.close()


@pytest.fixture
async def other(database):
    store = await Store.open(database.url, "other")
    yield store
    await store.close()


def used(request_id, *, cost="0.25", **more):
    tokens = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return record(request_id, cost=Decimal(cost), **(tokens | more))


def refused(request_id, **more):
    return record(request_id, status=Status.REFUSED, requests=0, **more)


def waiting(row):
    return altered(row, status=Status.PENDING, cost=None, total_tokens=0, prompt_tokens=0, completion_tokens=0)


async def refresh(store):
    while await store.refresh_rollups(10):
        pass


async def sums(store, by, every=None, **more):
    """The report as a dict, by step and key."""
    report = await store.report(by, every=every, **(EVER | more))
    assert report.stale_hours == 0
    return {(row.start, row.key): tuple(getattr(row, name) for name in SUMS) for row in report.rows}


def keys_of(row, by):
    facts = row.facts
    return {
        By.ALL: [""],
        By.USER: [facts.user_id],
        By.MODEL: [facts.model],
        By.GROUP: facts.groups,
        By.TASK: [facts.task or ""],
        By.CONNECTION: [facts.connection],
    }[by]


def expected(records, by, every=None, since=EVER["since"], until=EVER["until"], **_):
    """What a report should say: the same sums in plain Python."""
    added = defaultdict(lambda: [0] * 6 + [Decimal(0)])
    for row in records:
        at = row.facts.admitted_at
        if row.status is Status.PENDING or not since <= at < until:
            continue
        step = None if every is None else at // STEPS[every] * STEPS[every]
        is_refused, failed = row.status is Status.REFUSED, row.status is Status.FAILED
        tokens = (row.prompt_tokens, row.completion_tokens, row.total_tokens)
        for key in keys_of(row, by):
            values = (row.requests, is_refused, failed, *tokens, row.cost)
            added[step, key] = [total + value for total, value in zip(added[step, key], values, strict=True)]
    return {key: tuple(values) for key, values in added.items()}


async def test_a_report_has_the_sums_of_the_records_by_every_kind(store):
    written = [
        used("r-1", user_id="ada", groups=("staff", "night"), cost="0.000000000001"),
        used("r-2", user_id="zoe", groups=("staff",), model="openai/gpt-5", task="title_generation"),
        used("r-3", user_id="zoe", groups=(), status=Status.FAILED, cost="0"),
        refused("r-4", user_id="zoe", groups=()),
        used("r-5", at=NOON + HOUR, user_id="ada", cost="99.999999999999"),
    ]
    await store.write([], written)
    assert await store.refresh_rollups(10) == 2
    for by in By:
        assert await sums(store, by) == expected(written, by)
    assert await sums(store, By.USER) == {
        (None, "ada"): (2, 0, 0, 14, 6, 20, Decimal("100.000000000000")),
        (None, "zoe"): (2, 1, 1, 14, 6, 20, Decimal("0.25")),
    }
    assert await sums(store, By.TASK) == {
        (None, ""): (3, 1, 1, 21, 9, 30, Decimal("100")),
        (None, "title_generation"): (1, 0, 0, 7, 3, 10, Decimal("0.25")),
    }


async def test_the_dearest_come_first_and_only_as_many_as_were_asked_for(store):
    costs = {"a": "1", "b": "3", "c": "2", "d": "0.000000000001"}
    await store.write([], [used(f"r-{name}", user_id=name, cost=cost) for name, cost in costs.items()])
    await refresh(store)
    report = await store.report(By.USER, **(EVER | {"limit": 3}))
    assert [(row.key, row.cost) for row in report.rows] == [("b", 3), ("c", 2), ("a", 1)]


async def test_a_series_has_the_same_keys_in_each_step(store):
    written = [
        used("r-1", user_id="often", cost="2"),
        used("r-2", at=NOON + HOUR, user_id="often", cost="2"),
        used("r-3", at=NOON + HOUR, user_id="once", cost="3"),
        used("r-4", at=NOON + HOUR, user_id="cheap", cost="1"),
        used("r-5", at=NOON + DAY, user_id="cheap", cost="0.5"),
    ]
    await store.write([], written)
    await refresh(store)
    hours = await store.report(By.USER, every=Every.HOUR, **(EVER | {"limit": 2}))
    assert [(row.start, row.key, row.cost) for row in hours.rows] == [
        (NOON, "often", 2),
        (NOON + HOUR, "once", 3),
        (NOON + HOUR, "often", 2),
    ]
    assert await sums(store, By.USER, Every.DAY) == expected(written, By.USER, Every.DAY)


async def test_any_whole_hours_can_be_asked_for(store):
    written = [used(f"r-{n}", at=MIDNIGHT - 2 * HOUR + n * HOUR / 2, cost=str(n * n + 1)) for n in range(104)]
    await store.write([], written)
    await refresh(store)
    for since, until in [
        (MIDNIGHT, MIDNIGHT + 2 * DAY),
        (MIDNIGHT + HOUR, MIDNIGHT + 2 * DAY + HOUR),
        (MIDNIGHT + HOUR, MIDNIGHT + DAY),
        (MIDNIGHT + HOUR, MIDNIGHT + 3 * HOUR),
        (MIDNIGHT - HOUR, MIDNIGHT + HOUR),
        (MIDNIGHT + DAY, MIDNIGHT + DAY),
    ]:
        asked = {"since": since, "until": until}
        for every in (None, *Every):
            assert await sums(store, By.MODEL, every, **asked) == expected(written, By.MODEL, every, **asked)


async def test_who_used_nothing_in_the_time_is_not_in_its_report(store):
    written = [used("r-1", at=MIDNIGHT, user_id="early"), refused("r-2", at=NOON, user_id="refused")]
    await store.write([], [*written, used("r-3", at=MIDNIGHT + 23 * HOUR, user_id="late")])
    await refresh(store)
    # The day, without its last hour.
    when = {"since": MIDNIGHT, "until": MIDNIGHT + 23 * HOUR}
    assert await sums(store, By.USER, **when) == expected(written, By.USER)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_time_of_a_long_history_has_its_own_keys_and_sums_alone(one_database, data):
    # Sparse: whoever is in a long span is mostly outside of the time that is asked for.
    hours = st.integers(-3000, 200)
    times = data.draw(st.lists(hours, min_size=1, max_size=40))
    known = [
        used(f"r-{n}", at=MIDNIGHT + at * HOUR, user_id=f"u-{n % 7}", cost=str(n % 3)) for n, at in enumerate(times)
    ]
    known.append(refused("refused", at=MIDNIGHT + times[0] * HOUR, user_id="never served"))
    asked = data.draw(st.lists(st.tuples(hours, hours).map(sorted), min_size=1, max_size=8))

    async def live():
        store = await Store.open(one_database.url)
        await store.write([], known)
        await refresh(store)
        for since, until in asked:
            when = {"since": MIDNIGHT + since * HOUR, "until": MIDNIGHT + until * HOUR}
            for every in (None, Every.DAY):
                found = await sums(store, By.USER, every, **when)
                assert found == expected(known, By.USER, every, **when)
            report = await store.report(By.USER, **when, limit=500)
            assert list(report.rows) == sorted(report.rows, key=lambda row: (-row.cost, -row.requests, row.key))
        await store.close()

    asyncio.run(live())
    empty(one_database)


async def test_hours_that_are_asked_for_in_part_are_there_as_a_whole(store):
    await store.write([], [used("r-1"), used("r-2", at=NOON + HOUR - 1)])
    await refresh(store)
    report = await store.report(By.ALL, NOON + 600, NOON + 601)
    assert (report.since, report.until, [row.requests for row in report.rows]) == (NOON, NOON + HOUR, [2])


async def test_a_report_says_how_many_of_its_hours_lack_records(store):
    await store.write([], [used("r-1"), used("r-2", at=NOON + HOUR)])
    assert (await store.report(By.ALL, NOON, NOON + HOUR)).stale_hours == 1
    assert (await store.report(By.ALL, NOON - HOUR, NOON + 2 * HOUR)).stale_hours == 2
    assert (await store.report(By.ALL, NOON + 2 * HOUR, NOON + 3 * HOUR)).stale_hours == 0
    await refresh(store)
    assert (await store.report(By.ALL, NOON, NOON + DAY)).stale_hours == 0


async def test_all_that_a_report_is_made_of_is_of_one_moment(store, other):
    await store.write([], [used("r-1")])
    await refresh(store)
    asked = {"by": By.USER, "every": None, **EVER}
    async with store._read() as connection:
        report = await reports.report(connection, **asked)
        await other.write([], [used("r-2", user_id="ada"), used("r-3", at=NOON + HOUR)])
        await other.refresh_rollups(1)
        assert await reports.report(connection, **asked) == report
    later = await store.report(**asked)
    assert (later.stale_hours, {row.key: row.requests for row in later.rows}) == (1, {"ada": 1, "zoe": 1})


async def test_a_pending_request_counts_from_when_it_is_final_in_its_own_hour(store):
    final = used("r-1", cost="0.5")
    await store.write([], [waiting(final)])
    await refresh(store)
    assert await sums(store, By.USER) == {}
    await store.write([], [used("later", at=NOON + DAY), final])
    await refresh(store)
    assert await sums(store, By.ALL, Every.HOUR, until=NOON + HOUR) == {(NOON, ""): (1, 0, 0, 7, 3, 10, Decimal("0.5"))}


async def test_the_oldest_hours_are_added_up_first_and_each_once(store):
    await store.write([], [used(f"r-{n}", at=NOON - n * HOUR) for n in range(5)])
    assert await store.refresh_rollups(2) == 2
    assert (await store.report(By.ALL, NOON - 4 * HOUR, NOON - 2 * HOUR)).stale_hours == 0
    assert await store.refresh_rollups(10, after=NOON - 2 * HOUR) == 2
    assert await store.refresh_rollups(10) == 1
    assert await store.refresh_rollups(10) == 0


async def test_a_group_whose_name_no_database_can_keep_is_added_up_all_the_same(store):
    await store.write([], [used("r-1", groups=("night\0shift", "Zoë's 山田", 'a"b\\c', ""))])
    await refresh(store)
    assert {key for _, key in await sums(store, By.GROUP)} == {"night\ufffdshift", "Zoë's 山田", 'a"b\\c', ""}


async def test_an_hour_that_cannot_be_added_up_is_named_and_does_not_hold_up_the_others(postgres):
    database = postgres_database(postgres)
    store = await Store.open(database.url)
    await store.write([], [used("good", at=NOON + HOUR), used("bad-1"), used("bad-2")])
    # More tokens than there are numbers for.
    database.sql(f"UPDATE usage_records SET total_tokens = {2**62} WHERE request_id LIKE 'bad-%'")
    with pytest.raises(RollupFailed, match="the hour from 2027-01-15 12:00 UTC cannot be added up") as failed:
        await store.refresh_rollups(10)
    assert await store.refresh_rollups(10, after=failed.value.hour) == 1
    report = await store.report(By.ALL, NOON, NOON + DAY)
    assert (report.stale_hours, [row.requests for row in report.rows]) == (1, [1])
    await store.close()


async def test_a_writer_that_has_not_committed_is_waited_for(store, other, database):
    await store.write([], [used("r-1")])
    async with asyncio.timeout(DEADLINE):
        async with other._write() as connection:
            await rows.write(connection, [used("r-2")], node="other", era=0)
            refreshing = asyncio.create_task(store.refresh_rollups(10))
            await under_way(database, refreshing)
        assert await refreshing == 1
    assert (await sums(store, By.ALL))[None, ""][0] == 2


async def test_who_writes_while_an_hour_is_added_up_makes_it_stale_again(store, other, database):
    await store.write([], [used("r-1")])
    async with asyncio.timeout(DEADLINE):
        async with store._write() as connection:
            assert await rollups.refresh(connection, NOON)
            writing = asyncio.create_task(other.write([], [used("r-2")]))
            await under_way(database, writing)
        await writing
    assert (await store.report(By.ALL, **EVER)).stale_hours == 1
    await refresh(store)
    assert (await sums(store, By.ALL))[None, ""][0] == 2


async def test_while_one_node_adds_up_the_others_leave_it_to_that(postgres):
    database = postgres_database(postgres)
    one, other = [await Store.open(database.url) for _ in range(2)]
    await one.write([], [used("r-1")])
    async with one._write() as connection:
        await try_take(connection, Lock.ROLLUPS)
        with pytest.raises(JobTaken, match="another node is at the job rollups"):
            await other.refresh_rollups(10)
    assert await other.refresh_rollups(10) == 1
    for store in (one, other):
        await store.close()


async def test_sums_outlive_the_records_that_retention_drops(store):
    old = [used(f"old-{n}", at=LONG_AGO + n * HOUR, user_id="gone") for n in range(3)]
    await store.write([], [*old, used("new")])
    await refresh(store)
    before = await sums(store, By.USER)
    await drop(store)
    assert await ids(store) == ["new"]
    assert await sums(store, By.USER) == before
    # What comes that late is kept until the next time, and cannot make an hour smaller than it was.
    await store.write([], [used("late", at=LONG_AGO, user_id="gone")])
    await refresh(store)
    assert await sums(store, By.USER) == before
    await drop(store)
    assert await ids(store) == ["new"]


async def test_records_are_not_dropped_before_they_are_added_up(store):
    await store.write([], [used("old", at=LONG_AGO), used("new")])
    with pytest.raises(StillStale, match="not added up yet"):
        await drop(store)
    assert await ids(store) == ["new", "old"]
    await refresh(store)
    await drop(store)
    assert await ids(store) == ["new"]


async def test_an_hour_whose_records_somebody_else_deleted_keeps_its_sums(store, database):
    await store.write([], [used("r-1")])
    await refresh(store)
    before = await sums(store, By.MODEL)
    database.sql("DELETE FROM usage_records")
    database.sql("INSERT INTO stale_hours SELECT start, 1 FROM usage_sums WHERE kind = 'all' AND hours = 1")
    await refresh(store)
    assert await sums(store, By.MODEL) == before


ROWS = st.builds(
    dict,
    at=st.sampled_from([MIDNIGHT - 0.000001, MIDNIGHT, NOON, NOON + HOUR - 0.5, NOON + HOUR, NOON + 3 * DAY]),
    user_id=st.sampled_from(["ada", "zoe"]),
    model=st.sampled_from(["openai/gpt-4o", "openai/gpt-5"]),
    task=st.sampled_from([None, "title_generation"]),
    groups=st.sampled_from([(), ("staff",), ("night", "staff")]),
    status=st.sampled_from([Status.COMPLETED, Status.FAILED, Status.ABORTED]),
    cost=st.integers(0, 10**13).map(lambda pico: str(Decimal(pico).scaleb(-12))),
)
ROUNDS = st.lists(
    st.tuples(
        # What two nodes write at the same time (which rows, and whether as final ones), and whether one adds up then.
        *[st.lists(st.tuples(st.integers(0, 11), st.booleans()), max_size=6)] * 2,
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(known=st.lists(ROWS, min_size=12, max_size=12), rounds=ROUNDS)
def test_whoever_writes_and_adds_up_whenever_nothing_is_lost_or_counted_twice(one_database, known, rounds):
    every_row = [used(f"r-{n}", **values) for n, values in enumerate(known)]

    async def live():
        stores = [await Store.open(one_database.url, node) for node in ("one", "other")]
        final = set()
        for *written, adds_up in rounds:
            batches = [{n: every_row[n] if is_final else waiting(every_row[n]) for n, is_final in w} for w in written]
            # A node writes a row as pending, or as it is; two at once would each have their own of it.
            shared = batches[0].keys() & batches[1].keys()
            batches[1] = {n: row for n, row in batches[1].items() if n not in shared}
            work = [store.write([], list(batch.values())) for store, batch in zip(stores, batches, strict=True)]
            work += [store.refresh_rollups(10) for store in stores if adds_up]
            done = await asyncio.gather(*work, return_exceptions=True)
            assert [error for error in done if isinstance(error, Exception) and not isinstance(error, JobTaken)] == []
            final |= {n for batch in batches for n, row in batch.items() if row.status is not Status.PENDING}
        await refresh(stores[0])
        for by in By:
            for every in (None, *Every):
                assert await sums(stores[1], by, every) == expected([every_row[n] for n in final], by, every)
        for store in stores:
            await store.close()

    asyncio.run(live())
    empty(one_database)


@pytest.fixture(scope="module")
def one_database(new_database):
    """One that all examples have, one after the other."""
    return new_database()


def empty(database):
    for table in ("usage_records", "usage_sums", "stale_hours"):
        database.sql(f"DELETE FROM {table}")


async def drop(store):
    while await store.drop_records(MIDNIGHT - 300 * DAY):
        pass


async def ids(store):
    return [row.request_id for row in await store.usage(UsageQuery())]


async def under_way(database, task):
    """Return once `task` waits for a lock, or has ended. Who waits on SQLite does so unseen."""
    if database.url.startswith("postgresql"):
        waiting = asyncio.create_task(until_waiting(database, 1))
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
