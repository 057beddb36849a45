"""Calls whose outcome nobody knows: lost replies, and callers who leave."""

import asyncio

import pytest
from redis_nodes import KEYS, SLOTS, TOTAL, Nodes, stream, until
from redis_proxy import RedisProxy
from redis_server import RedisServer

from faregate.ledger.port import (
    AlreadySettled,
    Balance,
    Claim,
    Held,
    LedgerAway,
    Released,
    Settled,
)
from faregate.records import UsageRecord


async def test_a_reserve_without_an_answer_is_released_when_redis_is_back(node: Nodes, server: RedisServer):
    one = node(timeout=0.05)
    await one.ask("before")
    server.pause()
    with pytest.raises(LedgerAway):
        await one.ask("silent")
    server.resume()

    async def released() -> bool:
        return await one.see(TOTAL) == [Balance(held=10)]

    await until(released, "the hold of the reserve that was not answered stays")

    async def remembered() -> bool:
        with server.client() as client:
            return client.exists(KEYS.namespace(1) + b"x:silent") == 1

    await until(remembered, "there is no tombstone")
    with pytest.raises(Released):
        await one.ask("silent")


async def test_one_silence_of_redis_refuses_nobody(node: Nodes, server: RedisServer):
    one = node(timeout=0.05)
    await one.ask("settled")
    server.pause()
    asking = asyncio.create_task(one.ask("asked", Claim(TOTAL, 30)))
    paying = asyncio.create_task(one.pay("settled", (TOTAL, 4)))

    async def noticed() -> bool:
        return one.link.timeouts == 1

    await until(noticed, "the silence is not noticed")
    server.resume()
    assert await asking == Held(0)
    assert isinstance((await paying)[0], Settled)
    assert await one.see(TOTAL) == [Balance(used=4, held=30)]
    assert len(stream(server)) == 1


async def test_a_reserve_whose_caller_leaves_is_released(node: Nodes):
    one = node()
    await one.ask("before")
    asking = asyncio.create_task(one.ask("left"))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)

    async def released() -> bool:
        return await one.see(TOTAL) == [Balance(held=10)]

    await until(released, "the hold stays")
    assert one.ledger.holds == 1


async def test_a_settle_whose_reply_was_lost_is_repeated_and_charges_once(
    node: Nodes, server: RedisServer, proxy: RedisProxy
):
    one = node(url=proxy.url)
    await one.ask("r")
    proxy.delay(0.2)
    paying = asyncio.create_task(one.pay("r", (TOTAL, 4)))

    async def charged() -> bool:
        return bool(stream(server))

    await until(charged, "the settle does not get to Redis")
    proxy.drop_all()
    proxy.delay(0)
    done, kept = await paying
    assert isinstance(done, Settled)
    assert await one.see(TOTAL) == [Balance(used=4)]
    assert isinstance((await one.pay("r", (TOTAL, 4)))[0], AlreadySettled)
    assert len(stream(server)) == 1
    # The row whose entry was told in the lost reply goes, too, and the request is not remembered for ever.
    await one.ledger.written((), (kept,))
    assert stream(server) == []
    with server.client() as client:
        assert client.ttl(KEYS.namespace(1) + b"x:r") > 0


async def test_a_settle_whose_caller_leaves_is_handed_on(node: Nodes, server: RedisServer):
    one = node()
    left: list[UsageRecord] = []
    one.ledger.on_abandoned(left.append)
    await one.ask("r")
    paying = asyncio.create_task(one.pay("r", (TOTAL, 4)))
    await asyncio.sleep(0)
    paying.cancel()
    await asyncio.gather(paying, return_exceptions=True)
    assert [row.facts.request_id for row in left] == ["r"]
    assert isinstance((await one.pay("r", (TOTAL, 4)))[0], Settled)
    assert await one.see(TOTAL) == [Balance(used=4)]
    assert one.ledger.holds == 0


async def test_a_park_whose_caller_leaves_gives_its_slot_back(node: Nodes):
    one = node()
    await one.ask("r", Claim(SLOTS, 1), Claim(TOTAL, 10))
    parking = asyncio.create_task(one.ledger.park("r"))
    await asyncio.sleep(0)
    parking.cancel()
    await asyncio.gather(parking, return_exceptions=True)

    async def free() -> bool:
        return await one.see(SLOTS, TOTAL) == [Balance(), Balance(held=10)]

    await until(free, "the slot is taken")
