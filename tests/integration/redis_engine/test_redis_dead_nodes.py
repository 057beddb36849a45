"""Nodes that die, leave or are late, and their heirs."""

import asyncio
from typing import Any

from redis_nodes import KEYS, LEASE, SECONDS, TOTAL, Database, Nodes, stream, until
from redis_server import RedisServer

from faregate.ledger.port import (
    Settled,
)
from faregate.records import UsageRecord


async def test_of_two_heirs_one_gets_each_hold(node: Nodes):
    dead, *heirs = node("dead", by_hand=True), node("b", by_hand=True), node("c", by_hand=True)
    for n in range(20):
        await dead.ask(f"r{n}")
    later = dead.now + 2 * LEASE
    for heir in heirs:
        await heir.see(TOTAL)
    taken = await asyncio.gather(*(heir.ledger.adopt(heir.name, LEASE, later, 15) for heir in heirs))
    ids = [hold.facts.request_id for holds in taken for hold in holds]
    assert sorted(ids) == sorted(f"r{n}" for n in range(20))
    # The one that was thought dead, and its heir: one charge.
    mine = taken[0][0].facts.request_id
    settled = await asyncio.gather(dead.pay(mine, (TOTAL, 4)), heirs[0].pay(mine, (TOTAL, 10)))
    assert sum(isinstance(done, Settled) for done, _ in settled) == 1


async def test_holds_and_rows_whose_takeover_was_answered_in_vain_are_found_again(node: Nodes, server: RedisServer):
    dead, heir = node("dead", by_hand=True), node("b", by_hand=True)
    await dead.ask("held")
    await dead.ask("spent")
    await dead.pay("spent", (TOTAL, 3))
    heir.now = dead.now + 2 * LEASE
    await heir.see(TOTAL)
    # The same heir, in a process of its own whose memory does not get what Redis gave it.
    forgetful = node("b", by_hand=True)
    forgetful.now = heir.now
    await forgetful.see(TOTAL)
    assert len(await forgetful.ledger.adopt("b", LEASE, heir.now, 10)) == 1
    assert len(await forgetful.ledger.inherit(10)) == 1

    assert await heir.ledger.adopt("b", LEASE, heir.now, 10) == []
    assert await heir.ledger.inherit(10) == []
    heir.now += LEASE
    (hold,) = await heir.ledger.adopt("b", LEASE, heir.now, 10)
    assert hold.facts.request_id == "held"
    (row,) = await heir.ledger.inherit(10)
    assert isinstance(row, UsageRecord)
    await heir.ledger.written((), (row,))
    assert stream(server, "b") == []
    assert await heir.ledger.adopt("b", LEASE, heir.now + LEASE, 10) == []


async def test_a_node_that_was_forgotten_and_never_renews_is_found_dead_with_what_it_holds_then(
    node: Nodes, server: RedisServer
):
    one, heir = node("a", by_hand=True), node("b", by_hand=True)
    await one.ask("over")
    await one.ledger.release("over", one.now)
    heir.now = one.now + 2 * LEASE
    await heir.see(TOTAL)
    assert await heir.ledger.inherit(10) == []
    with server.client() as client:
        assert client.zscore(KEYS.nodes, "a") is None
    one.now = heir.now
    await one.ask("first")
    await one.ask("beside it")
    heir.now += 2 * LEASE
    holds = await heir.ledger.adopt("b", LEASE, heir.now, 10)
    assert {hold.facts.request_id for hold in holds} == {"first", "beside it"}


async def test_a_node_that_renews_late_keeps_everybody_from_being_taken_over(node: Nodes):
    one, heir = node("a"), node("b")
    lease = 1.0
    await one.ask("r", lease=lease)
    await one.ledger.renew("a", lease, one.now)
    await heir.ledger.renew("b", lease, heir.now)

    async def over() -> list[Any]:
        return await heir.ledger.expired(heir.now, 10)

    await until(over, "its lease is not over")
    # Both were kept from Redis for longer than half a lease; the other one comes first.
    await heir.ledger.renew("b", 1.9 * lease, heir.now)
    assert await heir.ledger.adopt("b", lease, heir.now, 10) == []


async def test_a_node_knows_which_of_its_requests_another_one_may_have_settled(node: Nodes):
    one, heir = node("a"), node("b")
    lease = 0.5
    await one.ask("before", lease=lease)
    await one.ledger.renew("a", lease, one.now)
    assert not one.ledger.lapsed("before")
    await heir.see(TOTAL)

    async def over() -> list[Any]:
        return await heir.ledger.adopt("b", LEASE, heir.now, 10)

    await until(over, "its lease is not over")
    assert one.ledger.lapsed("before")
    await one.ledger.renew("a", LEASE, one.now)
    await one.ask("after")
    assert (one.ledger.lapsed("before"), one.ledger.lapsed("after")) == (True, False)
    await one.pay("before", (TOTAL, 4))
    assert not one.ledger.lapsed("before")


async def test_a_node_that_leaves_while_nothing_can_be_built_leaves_all_the_same(
    node: Nodes, server: RedisServer, database: Database
):
    one = node()
    await one.ask("r")
    database.away = True
    server.flush()
    await one.ledger.release("r", one.now)
    async with asyncio.timeout(SECONDS):
        await one.ledger.leave()
