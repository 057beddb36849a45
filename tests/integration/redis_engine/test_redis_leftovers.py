"""What is over leaves nothing behind, and what it leaves for a while keeps nobody waiting."""

import asyncio
from dataclasses import replace

import pytest
from ledger_world import counter
from redis_nodes import KEYS, RATE, SLOTS, TOTAL, Database, Nodes, keys, stream, until
from redis_server import RedisServer

from faregate.directory import User
from faregate.ledger.port import (
    Balance,
    Claim,
    Held,
    Refused,
)
from faregate.ledger.redis.names import name_of
from faregate.records import UsageRecord


async def test_what_is_over_and_written_leaves_nothing_that_stays(node: Nodes, server: RedisServer):
    one = node()
    hour = counter(at=one.now)
    claims = [Claim(TOTAL, 10), Claim(hour, 10), Claim(RATE, 1), Claim(SLOTS, 1)]

    async def request(number: int) -> UsageRecord:
        await one.ask(f"r{number}", *claims)
        await one.ledger.note(f"r{number}", "gen")
        _, kept = await one.pay(f"r{number}", (TOTAL, 4), (hour, 4), (RATE, 1))
        return kept

    rows = [await request(0)]
    await one.ledger.written((), rows)
    with server.client() as client:
        stays = {key for key in client.scan_iter("*", count=1000) if client.ttl(key) < 0}
        size = client.hlen(KEYS.namespace(1) + b"nothing")
    rows = await asyncio.gather(*(request(n) for n in range(1, 200)))
    await one.ledger.written((), rows)
    with server.client() as client:
        assert {key for key in client.scan_iter("*", count=1000) if client.ttl(key) < 0} == stays
        assert client.xlen(KEYS.outbox("a")) == size == 0
    assert one.ledger.holds == 0
    assert await one.see(TOTAL, hour, SLOTS) == [Balance(800), Balance(800), Balance()]


async def test_counters_of_a_calendar_and_of_minutes_end_by_themselves(node: Nodes, server: RedisServer):
    one = node()
    hour = counter(at=one.now)
    await one.ask("held", Claim(hour, 5), Claim(RATE, 1))
    await one.pay("held", (hour, 5), (RATE, 1))
    await one.pay("not held", (counter(at=one.now, scope_id="bob"), 5))
    with server.client() as client:
        lives = [client.ttl(key) for key in keys(server) if ":1:c" in key or ":1:m" in key or ":1:@m" in key]
    assert len(lives) == 4
    assert all(0 < seconds <= 2 * 3600 + 60 for seconds in lives)


async def test_what_a_minute_no_longer_counts_is_forgotten_when_it_is_in_the_way(node: Nodes, server: RedisServer):
    one = node(by_hand=True)
    full = Claim(RATE, 1, limit=3)
    for n in range(3):
        assert isinstance(await one.ask(f"r{n}", full), Held)
        await one.pay(f"r{n}", (RATE, 1))
        one.now += 1
    refused = await one.ask("too many", full)
    assert isinstance(refused, Refused)
    assert (refused.used, refused.held) == (3, 0)
    one.now += 57.5
    assert isinstance(await one.ask("next", full), Held)
    refused = await one.ask("again too many", full)
    assert isinstance(refused, Refused)
    assert (refused.used, refused.held) == (2, 1)
    assert await one.see(RATE) == [Balance(2, 1)]


async def test_a_minute_that_nobody_fills_does_not_grow_for_ever(node: Nodes, server: RedisServer):
    one = node(by_hand=True)
    key = KEYS.namespace(1) + name_of(RATE)
    times = KEYS.namespace(1) + b"@" + name_of(RATE)
    with server.client() as client:
        for n in range(5):
            await one.ask(f"r{n}", Claim(RATE, 1, limit=100))
            await one.pay(f"r{n}", (RATE, 1))
        one.now += 61
        # As if half a minute had passed in Redis, too.
        client.pexpire(key, 94_000)
        client.pexpire(times, 94_000)
        await one.ask("next", Claim(RATE, 1, limit=100))
        assert client.zcard(times) == 1
        assert client.hlen(key) == len(("u", "h", "e"))
        assert min(client.ttl(key), client.ttl(times)) > 100
        # What is emptied, and so is gone, does not come back to stay for ever.
        await one.ledger.release("next", one.now)
        assert client.exists(times) == 0
        await one.ask("last", Claim(RATE, 1, limit=100))
        assert 0 < client.ttl(times) <= 125
    assert await one.see(RATE) == [Balance(0, 1)]


@pytest.mark.parametrize("limit", [10_000, 1_500], ids=["not in the way", "in the way"])
async def test_what_a_busy_minute_leaves_behind_keeps_nobody_waiting(
    limit: int, node: Nodes, database: Database, server: RedisServer
):
    one = node(by_hand=True)
    times = KEYS.namespace(1) + b"@" + name_of(RATE)
    database.rows = {f"r{n}": (0, [(RATE, 1)], one.now) for n in range(1_500)}
    assert await one.see(RATE) == [Balance(1_500)]
    one.now += 61
    left = []
    with server.client() as client:
        # As if half a minute had passed in Redis, too.
        client.pexpire(times, 94_000)
        for n in range(10):
            client.config_resetstat()
            assert isinstance(await one.ask(f"next{n}", Claim(RATE, 1, limit=limit)), Held)
            # One command for each entry of the minute is what kept Redis, and so everybody, from anything else.
            assert sum(command["calls"] for command in client.info("commandstats").values()) < 40
            left.append(client.zcard(times) - n - 1)
            assert await one.see(RATE) == [Balance(0, n + 1)]
    assert left[0] > 1_000
    assert left[-1] == 0


async def test_a_person_who_changes_twice_before_the_database_has_them_leaves_one_row(node: Nodes, server: RedisServer):
    one = node()
    await one.see(TOTAL)
    user = User("u1", "webui", "ada", None, "Ada", "user", (), True, None, one.now, one.now)
    one.ledger.met(user)
    one.ledger.met(replace(user, name="Lovelace"))
    # The database may be faster than Redis.
    await one.ledger.written((user,), ())

    async def gone() -> bool:
        return not stream(server)

    await until(gone, "the rows stay")


async def test_what_the_scripts_touch_is_in_one_slot_and_they_are_learned_again(node: Nodes, server: RedisServer):
    one = node()
    await one.ask("r")
    with server.client() as client:
        client.script_flush()
    await one.pay("r", (TOTAL, 4))
    assert await one.see(TOTAL) == [Balance(4)]
    assert all(key.startswith("{e}:") for key in keys(server))
