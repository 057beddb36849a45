"""Names, numbers and batches at their limits."""

import asyncio

import pytest
from ledger_world import counter
from redis_nodes import KEYS, TOKENS, TOTAL, Nodes, stream, until
from redis_server import RedisServer

from faregate.ledger.port import (
    Balance,
    Claim,
    Held,
    Settled,
)
from faregate.ledger.redis.names import shape_of
from faregate.ledger.redis.outbox import WRITTEN_AT_ONCE
from faregate.policy.model import Meter, Window
from faregate.records import altered


@pytest.mark.parametrize("name", ["line\nbreak", "null\0byte", "ünï→🎫", "g" * 100_000, '"},{', "{slot}", "e*[a-z]?"])
async def test_a_group_may_have_any_name(node: Nodes, name: str):
    one = node()
    of = counter(window=Window.TOTAL, scope_id=name)
    minute = counter(Meter.REQUESTS, Window.MINUTE, scope_id=name)
    await one.ask("r", Claim(of, 5, limit=1, enforce=False), Claim(minute, 1))
    assert (await one.ask("r", Claim(of, 5), Claim(minute, 1))) == Held(0, (of,))
    await one.pay("r", (of, 3), (minute, 1))
    assert await one.see(of, minute) == [Balance(3), Balance(1)]


async def test_what_cannot_be_counted_exactly_is_refused_before_and_charged_as_the_most_after(node: Nodes):
    one = node()
    with pytest.raises(ValueError, match="more than can be counted"):
        await one.ask("r", Claim(TOTAL, 2**53))
    assert isinstance(await one.ask("limited", Claim(TOKENS, 5, limit=10**30)), Held)
    await one.ledger.learn([shape_of(TOTAL)])
    done, _ = await one.pay("r", (TOTAL, 10**30))
    assert isinstance(done, Settled)
    assert await one.see(TOTAL) == [Balance(2**53 - 1)]


async def test_a_request_may_touch_hundreds_of_counters_and_a_batch_hundreds_of_rows(node: Nodes, server: RedisServer):
    one = node()
    many = [counter(window=Window.TOTAL, scope_id=f"g{n}") for n in range(700)]
    await one.ask("wide", *(Claim(of, 5) for of in many))
    _, wide = await one.pay("wide", *((of, 2**53 - 1) for of in many))
    rows = [kept for _, kept in await asyncio.gather(*(one.pay(f"r{n}", (TOTAL, 1)) for n in range(500)))]
    await one.ledger.written((), [wide, *rows])
    assert stream(server) == []
    assert await one.see(many[0], many[-1], TOTAL) == [Balance(2**53 - 1), Balance(2**53 - 1), Balance(500)]


async def test_a_long_batch_leaves_the_outbox_in_several_calls(node: Nodes, server: RedisServer):
    one = node()
    number = 2 * WRITTEN_AT_ONCE + 1
    rows = [kept for _, kept in await asyncio.gather(*(one.pay(f"r{n}", (TOTAL, 1)) for n in range(number)))]
    # More records than rows: the outbox knows nothing of the entries of the others.
    strange = [altered(row, facts=altered(row.facts, request_id=f"s{n}")) for n, row in enumerate(rows)]
    before = one.link.calls
    await one.ledger.written((), [*rows, *strange])
    assert one.link.calls - before == 5
    assert stream(server) == []
    with server.client() as client:
        assert {client.ttl(KEYS.namespace(1) + f"x:r{n}".encode()) > 0 for n in range(number)} == {True}


async def test_a_long_batch_leaves_the_outbox_whoever_leaves_meanwhile(node: Nodes, server: RedisServer):
    one = node()
    number = 2 * WRITTEN_AT_ONCE + 1
    rows = [kept for _, kept in await asyncio.gather(*(one.pay(f"r{n}", (TOTAL, 1)) for n in range(number)))]
    telling = asyncio.create_task(one.ledger.written((), rows))
    await asyncio.sleep(0)
    telling.cancel()
    await asyncio.gather(telling, return_exceptions=True)

    async def is_empty() -> bool:
        return not stream(server)

    await until(is_empty, "rows that the database has stay in the outbox")
