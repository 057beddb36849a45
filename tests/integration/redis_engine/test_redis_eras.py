"""Eras: limits that are learned, and records that are charged again."""

import asyncio

from redis_nodes import KEYS, LEASE, TOKENS, TOTAL, Database, Node, Nodes, stream, until
from redis_server import RedisServer

from faregate.ledger.port import (
    Balance,
    Settled,
)
from faregate.ledger.redis.names import shape_of
from faregate.records import UsageRecord


async def test_a_new_limit_begins_an_era_and_counts_each_record_once(node: Nodes, database: Database):
    one = node()
    _, written = await one.pay("nothing learned", (TOTAL, 3), (TOKENS, 30))
    assert database.write(written, [(TOTAL, 3), (TOKENS, 30)])
    await one.ledger.learn([shape_of(TOTAL)])
    _, unwritten = await one.pay("charged", (TOTAL, 4), (TOKENS, 40))
    await one.ledger.learn([shape_of(TOKENS)])
    assert await one.see(TOTAL, TOKENS) == [Balance(7), Balance(30)]
    assert not database.write(unwritten, [])
    done, amended = await one.pay("charged", (TOTAL, 4), (TOKENS, 40), era=unwritten.era)
    assert isinstance(done, Settled)
    assert database.write(amended, [(TOTAL, 4), (TOKENS, 40)])
    assert await one.see(TOTAL, TOKENS) == [Balance(7), Balance(70)]


async def test_an_era_that_only_the_database_began_is_followed_once_for_many_late_records(
    node: Nodes, database: Database
):
    one = node()
    await one.ledger.learn([shape_of(TOTAL)])
    paid = [(await one.pay(f"r{n}", (TOTAL, 1)))[1] for n in range(30)]
    # A builder that was killed between the two.
    before = await database.next_era()
    assert not database.write(paid[0], [])
    again = await asyncio.gather(*(one.pay(late.facts.request_id, (TOTAL, 1), era=late.era) for late in paid))
    assert database.era == before + 1
    assert all(database.write(kept, [(TOTAL, 1)]) for _, kept in again)
    assert await one.see(TOTAL) == [Balance(30)]


async def test_an_administrator_who_leaves_does_not_leave_the_eras_apart(node: Nodes, server: RedisServer):
    database = Database()
    one = Node(server.url, database, "a", by_hand=False, timeout=2)
    try:
        await one.ledger.learn([shape_of(TOTAL)])
        given: asyncio.Event = asyncio.Event()
        go_on: asyncio.Event = asyncio.Event()
        next_era = database.next_era

        async def slowly(above: int = 0) -> int:
            era = await next_era(above)
            given.set()
            await go_on.wait()
            return era

        database.next_era = slowly  # type: ignore[method-assign] # a database that answers late
        learning = asyncio.create_task(one.ledger.learn([shape_of(TOKENS)]))
        await given.wait()
        learning.cancel()
        await asyncio.gather(learning, return_exceptions=True)
        go_on.set()

        async def in_redis() -> bool:
            with server.client() as client:
                return client.get(KEYS.state) == f"1.{database.era}"

        await until(in_redis, "the era of the database did not get to Redis")
    finally:
        await one.close()


async def test_an_heir_charges_what_was_amended_and_its_record_gets_to_the_database(
    node: Nodes, database: Database, server: RedisServer
):
    one, heir = node("a", by_hand=True), node("b", by_hand=True)
    await one.ledger.learn([shape_of(TOTAL)])
    await one.ledger.renew("a", LEASE, one.now)
    _, first = await one.pay("r", (TOTAL, 4), (TOKENS, 40))
    await one.ledger.learn([shape_of(TOKENS)])
    await one.pay("r", (TOTAL, 4), (TOKENS, 40), era=first.era)
    assert len(stream(server)) == 1
    # It dies before it has written.
    heir.now = one.now + 2 * LEASE
    await heir.see(TOTAL)
    (row,) = await heir.ledger.inherit(10)
    assert isinstance(row, UsageRecord)
    if not database.write(row, [(TOTAL, 4), (TOKENS, 40)]):
        done, row = await heir.pay("r", (TOTAL, 4), (TOKENS, 40), era=row.era)
        assert isinstance(done, Settled)
        assert database.write(row, [(TOTAL, 4), (TOKENS, 40)])
    await heir.ledger.written((), (row,))
    assert stream(server, "b") == []
    assert await heir.see(TOTAL, TOKENS) == [Balance(4), Balance(40)]


async def test_an_heir_amends_what_it_inherited(node: Nodes, database: Database):
    one, heir = node("a", by_hand=True), node("b", by_hand=True)
    await one.ledger.learn([shape_of(TOTAL)])
    await one.ledger.renew("a", LEASE, one.now)
    await one.pay("r", (TOTAL, 4), (TOKENS, 40))
    heir.now = one.now + 2 * LEASE
    await heir.see(TOTAL)
    (row,) = await heir.ledger.inherit(10)
    assert isinstance(row, UsageRecord)
    await heir.ledger.learn([shape_of(TOKENS)])
    assert not database.write(row, [])
    done, row = await heir.pay("r", (TOTAL, 4), (TOKENS, 40), era=row.era)
    assert isinstance(done, Settled)
    assert database.write(row, [(TOTAL, 4), (TOKENS, 40)])
    assert await heir.see(TOTAL, TOKENS) == [Balance(4), Balance(40)]
