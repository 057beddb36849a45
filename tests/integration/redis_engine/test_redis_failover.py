"""The same on a cluster, and through a fail-over."""

import asyncio

from redis_nodes import LEASE, RATE, SLOTS, TOTAL, Node, Nodes, until
from redis_server import RedisCluster, RedisSentinel

from faregate.ledger.port import (
    Balance,
    Claim,
    Held,
    Settled,
)


async def short_history(one: Node, mark: str) -> None:
    assert isinstance(await one.ask(f"{mark}-1", Claim(TOTAL, 10), Claim(RATE, 1), Claim(SLOTS, 1)), Held)
    assert isinstance(await one.ask(f"{mark}-2", Claim(TOTAL, 10)), Held)
    await one.ledger.renew("a", LEASE, one.now)
    await one.ledger.park(f"{mark}-1")
    done, kept = await one.pay(f"{mark}-1", (TOTAL, 4), (RATE, 1))
    assert isinstance(done, Settled)
    assert one.database.write(kept, [(TOTAL, 4), (RATE, 1)])
    await one.ledger.written((), (kept,))
    await one.ledger.release(f"{mark}-2", one.now)
    assert await one.ledger.adopt("a", LEASE, one.now, 10) == []
    assert await one.ledger.inherit(10) == []


async def test_a_cluster_runs_every_script(node: Nodes):
    cluster = RedisCluster()
    cluster.start()
    one = node(url=cluster.url)
    try:
        await short_history(one, "r")
        assert await one.see(TOTAL, RATE, SLOTS) == [Balance(4), Balance(1), Balance()]
    finally:
        await one.close()
        cluster.remove()


async def test_after_a_fail_over_the_counters_are_built_anew_and_the_hold_is_back(node: Nodes):
    sentinel = RedisSentinel()
    sentinel.start()
    one = node(url=sentinel.url)
    try:
        await short_history(one, "r")
        await one.ask("across")
        await asyncio.to_thread(sentinel.fail_over)
        await until(lambda: one.see(TOTAL), "nothing counts after the fail-over")
        assert await one.see(TOTAL, RATE) == [Balance(4, held=10), Balance(1)]
        await short_history(one, "s")
    finally:
        await one.close()
        sentinel.remove()
