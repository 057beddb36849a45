"""Epochs: Redis emptied, replaced or set back, and its counters built anew by many nodes."""

import asyncio
import time
from typing import Any

import pytest
from redis_nodes import KEYS, LEASE, RATE, TOTAL, Database, Node, Nodes, keys, until
from redis_proxy import RedisProxy
from redis_server import RedisServer

from faregate.ledger.port import (
    Balance,
    Claim,
    Held,
    LedgerAway,
    Refused,
    Settled,
)
from faregate.ledger.redis.names import name_of


async def test_five_nodes_find_redis_empty_and_build_its_counters_once(node: Nodes, database: Database):
    database.rows = {f"r{n}": (0, [(TOTAL, 7)], 0.0) for n in range(100)}
    nodes = [node(name) for name in "abcde"]
    await asyncio.gather(*(one.ask(f"of-{one.name}", Claim(TOTAL, 1)) for one in nodes))
    assert await nodes[0].see(TOTAL) == [Balance(used=700, held=5)]
    assert sum(one.ledger.rebuilds for one in nodes) == 1


async def test_a_flush_under_way_loses_no_hold_and_no_charge(node: Nodes, database: Database, server: RedisServer):
    nodes = [node(name) for name in "abc"]
    for one in nodes:
        await one.ask(f"of-{one.name}")
        await one.ledger.renew(one.name, LEASE, one.now)
    _, written = await nodes[0].pay("spent", (TOTAL, 5))
    assert database.write(written, [(TOTAL, 5)])
    # Everybody knows everybody, so all are waited for.
    for one in nodes:
        await one.ledger.renew(one.name, LEASE, one.now)
    server.flush()

    async def all_there() -> bool:
        return await nodes[0].see(TOTAL) == [Balance(used=5, held=30)]

    for one in nodes:
        one.ledger.look_again()
    await until(all_there, "the holds and charges are not back")
    assert sum(one.ledger.rebuilds for one in nodes) == 2


async def test_nobody_is_admitted_before_the_other_nodes_have_brought_their_holds(
    node: Nodes, server: RedisServer, proxy: RedisProxy
):
    first, second = node("a"), node("b", url=proxy.url)
    await second.ask("of-b", Claim(TOTAL, 90, limit=100))
    for one in (second, first):
        await one.ledger.renew(one.name, LEASE, one.now)
    server.flush()
    asking = asyncio.create_task(first.ask("of-a", Claim(TOTAL, 20, limit=100)))
    second.ledger.look_again()
    assert await asking == Refused(TOTAL, used=0, held=90, limit=100, needed=20)


async def test_a_minute_of_very_many_requests_is_built_at_the_first_try(server: RedisServer):
    database = Database()
    now = time.time()
    database.rows = {f"r{n}": (0, [(RATE, 1)], now) for n in range(20_000)}
    one = Node(server.url, database, "a", by_hand=False, timeout=0.05)
    try:
        assert await until(lambda: one.see(RATE), "the counters are not built") == [Balance(20_000)]
        assert database.builds == 1
    finally:
        await one.close()


async def test_all_nodes_are_told_of_a_new_one_once(node: Nodes, server: RedisServer):
    one = node("a")
    with server.client() as client, client.pubsub() as heard:
        heard.subscribe(KEYS.channel)
        # A hold alone says nothing of how long its node will live.
        await one.ask("r")
        for _ in range(2):
            await one.ledger.renew("a", LEASE, one.now)
        news = []
        while message := heard.get_message(timeout=0.2):
            news.append(message["data"])
    assert news.count("node") == 1


async def test_a_renewal_that_comes_first_makes_nobody_forget_the_other_nodes(
    node: Nodes, server: RedisServer, proxy: RedisProxy
):
    first, second = node("a"), node("b", url=proxy.url)
    await second.ask("of-b", Claim(TOTAL, 90, limit=100))
    for one in (second, first):
        await one.ledger.renew(one.name, LEASE, one.now)
    written = asyncio.Event()
    first.ledger.on_epoch(written.wait)
    server.flush()
    await first.ledger.renew(first.name, LEASE, first.now)
    written.set()
    asking = asyncio.create_task(first.ask("of-a", Claim(TOTAL, 20, limit=100)))
    second.ledger.look_again()
    assert await asking == Refused(TOTAL, used=0, held=90, limit=100, needed=20)
    assert first.ledger.alive == ("a", "b")


async def test_what_a_node_has_to_charge_again_is_charged_before_anybody_is_admitted(
    node: Nodes, server: RedisServer, database: Database
):
    database.rows["before"] = (0, [(TOTAL, 1)], 0.0)
    first, second = node("a"), node("b")
    await second.ask("spent", Claim(TOTAL, 90))
    _, unwritten = await second.pay("spent", (TOTAL, 90))
    for one in (second, first):
        await one.ledger.renew(one.name, LEASE, one.now)

    async def built() -> bool:
        with server.client() as client:
            epoch = int(client.get(KEYS.state).partition(".")[0])
            return client.hexists(KEYS.namespace(epoch) + name_of(TOTAL), "b")

    async def charge_again() -> None:
        await until(built, "the counters do not get what was spent before")
        # An admission that does not wait has its chance.
        await asyncio.wait([asking], timeout=0.3)
        # As the outbox and the reconciler do: the call of a standing that may be looked at anew meanwhile.
        second.ledger.look_again()
        done, again = await second.pay("spent", (TOTAL, 90), era=unwritten.era)
        assert isinstance(done, Settled)
        assert database.write(again, [(TOTAL, 90)])

    second.ledger.on_epoch(charge_again)
    server.flush()
    asking = asyncio.create_task(first.ask("of-a", Claim(TOTAL, 20, limit=100)))
    second.ledger.look_again()
    assert await asking == Refused(TOTAL, used=91, held=0, limit=100, needed=20)


async def test_holds_that_come_while_another_node_begins_an_era_are_brought_again(
    node: Nodes, server: RedisServer, database: Database, monkeypatch: pytest.MonkeyPatch
):
    one = node()
    await one.ask("early")
    standing = one.ledger._standing
    bring = standing._bring

    def late() -> Any:
        # The other node is between this one's look and its holds.
        monkeypatch.setattr(standing, "_bring", bring)
        with server.client() as client:
            epoch = client.get(KEYS.state).partition(".")[0]
            database.era += 1
            client.set(KEYS.state, f"{epoch}.{database.era}")
        return bring()

    monkeypatch.setattr(standing, "_bring", late)
    server.flush()

    async def back() -> bool:
        return await one.see(TOTAL) == [Balance(held=10)]

    await until(back, "the hold is lost")


async def test_a_stale_dump_is_noticed_by_the_run_of_the_server_and_its_leftovers_are_removed(database: Database):
    server = RedisServer(persistent=True)
    server.start()
    one = Node(server.url, database, "a", by_hand=False, timeout=2)
    try:
        await one.ask("early")
        server.restart()
        await until(lambda: one.see(TOTAL), "the counters are not built")
        assert await one.see(TOTAL) == [Balance(held=10)]
        assert one.ledger.rebuilds == 2
        former = KEYS.namespace(1).decode()

        async def swept() -> bool:
            return not [key for key in keys(server) if key.startswith(former)]

        await until(swept, "the counters of the former epoch stay")
        assert await one.see(TOTAL) == [Balance(held=10)]
    finally:
        await one.close()
        server.remove()


async def test_a_database_that_was_set_back_does_not_lead_the_ledger_back_to_counters_of_long_ago(database: Database):
    server = RedisServer(persistent=True)
    server.start()
    nodes = [Node(server.url, database, "a", by_hand=False, timeout=2)]
    try:
        database.era = 6
        await nodes[0].ask("early")
        await nodes[0].pay("early", (TOTAL, 10))
        with server.client() as client:
            before = client.get(KEYS.state).split(".")
        assert int(before[0]) == 7
        database.era, database.rows = 0, {}
        await nodes.pop().close()
        server.restart()
        nodes.append(Node(server.url, database, "b", by_hand=False, timeout=2))
        await until(lambda: nodes[0].see(TOTAL), "the counters are not built")
        assert await nodes[0].see(TOTAL) == [Balance()]
        with server.client() as client:
            after = client.get(KEYS.state).split(".")
        assert int(after[0]) > int(before[1])
    finally:
        for one in nodes:
            await one.close()
        server.remove()


async def test_the_database_may_be_away_when_redis_is_lost_and_all_is_well_when_it_is_back(
    node: Nodes, server: RedisServer, database: Database
):
    one = node()
    await one.ask("early")
    database.away = True
    server.flush()
    with pytest.raises(LedgerAway, match="database"):
        await one.ask("meanwhile")
    assert one.ledger.failure is not None
    database.away = False
    assert await until(lambda: one.see(TOTAL), "the counters are not built") == [Balance(held=10)]
    assert one.ledger.failure is None


async def test_a_request_that_cannot_wait_for_counters_owes_nothing(
    node: Nodes, server: RedisServer, database: Database
):
    one = node()
    database.open.clear()
    with pytest.raises(LedgerAway, match="being built"):
        await one.ask("impatient")
    database.open.set()
    await until(lambda: one.see(TOTAL), "the counters are not built")
    # It never was on its way: nothing has to be kept about it.
    assert not [key for key in keys(server) if ":x:" in key]
    assert isinstance(await one.ask("impatient"), Held)
