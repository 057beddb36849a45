"""PostgreSQL that is away, refuses, hangs or is killed: nothing waits for ever, is lost or is written twice."""

import asyncio
import os
import socket
from contextlib import asynccontextmanager, suppress

import asyncpg
import pytest
from databases import DEADLINE, postgres_database
from rows import NOON, person, record

from faregate.accounting.outbox import Outbox
from faregate.store import inserts, postgresql
from faregate.store.errors import StoreError, StoreUnavailable
from faregate.store.store import Store, UsageQuery
from faregate.store.writer import ROWS_AT_ONCE

OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND pid != pg_backend_pid()"


@pytest.fixture
def database(postgres):
    return postgres_database(postgres)


@pytest.fixture
async def store(database):
    store = await Store.open(database.url)
    yield store
    await store.close()


@asynccontextmanager
async def another_session(database):
    connection = await asyncpg.connect(database.url)
    try:
        yield connection
    finally:
        await connection.close()


async def written(store):
    """Request ids, in the order of the requests."""
    return [row.request_id for row in reversed(await store.usage(UsageQuery(limit=10_000)))]


async def test_the_other_common_scheme_means_the_same(database):
    store = await Store.open(database.url.replace("postgresql://", "postgres://"))
    await store.ping()
    await store.close()


async def test_the_url_may_say_what_libpq_knows(database):
    store = await Store.open(f"{database.url}?sslmode=disable&application_name=faregate-of-a-test")
    names = database.sql("SELECT application_name FROM pg_stat_activity WHERE datname = current_database()")
    await store.close()
    assert ("faregate-of-a-test",) in names


async def test_a_url_that_cannot_work_is_not_tried_again(database):
    with pytest.raises(StoreError, match=r"DATABASE_URL cannot be used .*sslmode.* correct it") as refusal:
        await Store.open(f"{database.url}?sslmode=perhaps")
    assert not isinstance(refusal.value, StoreUnavailable)


async def test_a_server_that_is_not_there_is_worth_another_try():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(StoreUnavailable, match=r"cannot be reached .*try again"):
            await Store.open(f"postgresql://postgres@127.0.0.1:{taken.getsockname()[1]}/faregate")


async def test_a_server_that_never_answers_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(postgresql, "CONNECT_TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(StoreUnavailable, match="did not answer in time; try again"):
            await Store.open(f"postgresql://postgres@127.0.0.1:{port}/faregate?sslmode=disable")


async def test_a_database_that_is_not_there_is_named(postgres):
    with pytest.raises(StoreUnavailable, match=r'database "nowhere" does not exist.*try again'):
        await Store.open(postgres.url("nowhere"))


async def test_a_server_with_too_many_connections_says_so(database, postgres):
    name = database.url.rpartition("/")[2]
    database.sql("CREATE ROLE crowded LOGIN CONNECTION LIMIT 0")
    with pytest.raises(StoreUnavailable, match=r"too many connections.*try again"):
        await Store.open(postgres.url(name, user="crowded"))


async def test_a_role_that_may_not_make_tables_says_so(database, postgres):
    name = database.url.rpartition("/")[2]
    database.sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC; CREATE ROLE guest LOGIN")
    with pytest.raises(StoreUnavailable, match="permission denied for schema public"):
        await Store.open(postgres.url(name, user="guest"))


@pytest.mark.parametrize("people", [(), (person(),)], ids=["alone", "with a person"])
async def test_a_statement_that_does_not_end_is_given_up_and_can_be_tried_again(database, monkeypatch, people):
    monkeypatch.setattr(postgresql, "COMMAND_TIMEOUT", 0.3)
    store = await Store.open(database.url)
    async with another_session(database) as other:
        transaction = other.transaction()
        await transaction.start()
        await other.execute("LOCK TABLE usage_records")
        with pytest.raises(StoreUnavailable, match="did not answer in time; try again"):
            await store.write(people, [record()])
        await transaction.rollback()
    assert (await store.load()).users == ()
    await store.write(people, [record()])
    assert await written(store) == ["r-1"]
    await store.close()


async def test_a_store_uses_no_more_connections_than_its_pool_has(store, database):
    with_people = (store.write([person(f"u-{n}")], [record(f"r-{n}")]) for n in range(40))
    alone = (store.write([], [record(f"alone-{n}")]) for n in range(40))
    await asyncio.gather(*with_people, *alone)
    [(sessions,)] = database.sql(f"SELECT count(*) {OTHERS}")
    assert int(sessions) <= 5


async def test_a_store_that_is_closed_has_no_connection(database):
    store = await Store.open(database.url)
    await store.write([person()], [record()])
    await store.write([], [record("r-2")])
    assert database.sql(f"SELECT count(*) > 0 {OTHERS}") == [("t",)]
    await store.close()
    async with asyncio.timeout(DEADLINE):
        # The server is another process, which does not tell when it has let go.
        while database.sql(f"SELECT count(*) {OTHERS}") != [("0",)]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_records_are_written_on_when_the_server_has_ended_the_connection(store, database):
    await store.write([], [record("before")])
    database.sql(f"SELECT pg_terminate_backend(pid) {OTHERS}")
    async with asyncio.timeout(DEADLINE):
        # One that ends under a write is noticed by that one.
        while True:
            with suppress(StoreUnavailable):
                await store.write([], [record("after", at=NOON + 1)])
                break
    assert await written(store) == ["before", "after"]


async def test_a_long_batch_is_made_in_steps_between_which_others_are_served(store, monkeypatch):
    number = 2 * ROWS_AT_ONCE + 1
    turns, turns_of_parts, part = 0, [], inserts.part

    async def serve():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def noted(rows):
        turns_of_parts.append(turns)
        return part(rows)

    monkeypatch.setattr(inserts, "part", noted)
    serving = asyncio.create_task(serve())
    # What no database can keep is in the step in the middle.
    texts = ["a\0b" if n == ROWS_AT_ONCE else "ab" for n in range(number)]
    await store.write([], [record(f"r-{n:04}", at=NOON + n, reason=text) for n, text in enumerate(texts)])
    serving.cancel()
    assert len(set(turns_of_parts)) == 3
    rows = list(reversed(await store.usage(UsageQuery(limit=10_000))))
    assert [row.request_id for row in rows] == [f"r-{n:04}" for n in range(number)]
    assert [row.reason for row in rows] == [text.replace("\0", "\ufffd") for text in texts]


async def test_two_nodes_that_meet_the_same_new_people_both_keep_them(database):
    nodes = [await Store.open(database.url) for _ in range(3)]
    for turn in range(25):
        people = [person(f"u-{turn}-{n}") for n in range(3)]
        await asyncio.gather(*(node.write(people, []) for node in nodes for _ in range(3)))
    assert len((await nodes[0].load()).users) == 75
    for node in nodes:
        await node.close()


async def test_a_row_that_the_database_refuses_does_not_stop_the_others(store):
    outbox = Outbox(store)
    outbox.add_record(record("r-1"))
    outbox.add_record(record("too large a number", total_tokens=2**70))
    outbox.add_record(record("too large a time", at=1e18))
    # An index has no room for it, however well it is compressed.
    outbox.add_user(person(os.urandom(20_000).hex(), id="too long a subject"))
    outbox.add_record(record("r-2", at=NOON + 1))
    await outbox.flush()
    assert outbox.lag.waiting == 0
    assert sorted(outbox.lag.dead) == ["too large a number", "too large a time", "too long a subject"]
    assert await written(store) == ["r-1", "r-2"]


async def test_connections_that_the_server_ended_are_replaced_unnoticed(store, database):
    await asyncio.gather(*(store.ping() for _ in range(5)))
    database.sql(f"SELECT pg_terminate_backend(pid) {OTHERS}")
    await asyncio.gather(*(store.ping() for _ in range(5)))


async def test_kill_9_of_the_server_under_writes_loses_nothing_and_writes_nothing_twice(store, postgres):
    outbox = Outbox(store)
    outbox.start()
    sent = []

    def send():
        name = f"r-{len(sent):05}"
        outbox.add_user(person(f"u-{len(sent) % 50}", seen=NOON + len(sent)))
        outbox.add_record(record(name, at=NOON + len(sent), user_id=f"u-{len(sent) % 50}", cost_nano=1))
        sent.append(name)

    async def send_until(condition):
        async with asyncio.timeout(30):
            while not condition():
                send()
                # The server is another process, which does not tell when it is killed or has written.
                await asyncio.sleep(0.01)

    try:
        await send_until(lambda: len(sent) - outbox.lag.waiting > 100)
        postgres.kill()
        await send_until(lambda: outbox.lag.error is not None)
        assert "try again" in outbox.lag.error
        with pytest.raises(StoreUnavailable, match="try again"):
            await store.write([], [record("meanwhile")])
    finally:
        await asyncio.to_thread(postgres.start)
    for _ in range(100):
        send()
    await outbox.stop()
    assert (outbox.lag.waiting, outbox.lag.dead) == (0, ())
    assert await written(store) == sent
    assert sum(row.nano for row in await store.spend(0)) == len(sent)
    assert len((await store.load()).users) == 50
