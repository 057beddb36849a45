"""What a dead node left pending: another one takes it over, one alone, and settles it."""

import asyncio
from decimal import Decimal

import pytest
from rows import NOON, record

from faregate.records import Source, Status
from faregate.store import engine
from faregate.store.store import Store


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """On SQLite the lock is not given in turn: with many writers on a busy machine one may wait for long."""
    monkeypatch.setattr(engine, "POOL_TIMEOUT", 60.0)


@pytest.fixture
async def dead(database):
    store = await Store.open(database.url, "dead")
    yield store
    await store.close()


@pytest.fixture
async def alive(database):
    store = await Store.open(database.url, "alive")
    yield store
    await store.close()


def waiting(request_id="r-1", **more):
    return record(request_id, status=Status.PENDING, **({"cost": None} | more))


async def test_who_leaves_something_pending_owns_it_until_it_is_final(dead, database):
    await dead.write([], [waiting(), record("r-2")])
    owners = "SELECT request_id, node FROM usage_records ORDER BY request_id"
    assert database.sql(owners) == [("r-1", "dead"), ("r-2", None)]
    await dead.write([], [record()])
    assert database.sql(owners) == [("r-1", None), ("r-2", None)]


async def test_what_no_live_node_owns_is_claimed_oldest_first(dead, alive, database):
    rows = [waiting(f"r-{n}", at=NOON - n) for n in range(5)]
    await dead.write([], [*rows, record("final")])
    database.sql("UPDATE usage_records SET node = NULL WHERE request_id = 'r-3'")
    assert await alive.claim_pending(["alive"], 2) == [rows[4], rows[3]]
    assert await alive.claim_pending(["alive"], 10) == [rows[2], rows[1], rows[0]]
    assert await alive.claim_pending(["alive"], 10) == []


async def test_what_a_live_node_owns_is_its_own_also_after_a_claim(dead, alive, database):
    third = await Store.open(database.url, "third")
    await dead.write([], [waiting("r-1")])
    await alive.write([], [waiting("r-2")])
    assert await third.claim_pending(["alive", "third", "dead"], 10) == []
    assert await alive.claim_pending([], 10) == [waiting("r-1")]
    assert await third.claim_pending(["alive", "third"], 10) == []
    assert await third.claim_pending(["third"], 10) == [waiting("r-1"), waiting("r-2")]
    await third.close()


async def test_each_row_is_claimed_by_one_however_many_ask_at_once(dead, database):
    rows = {f"r-{n:03}" for n in range(90)}
    await dead.write([], [waiting(name) for name in rows])
    heirs = [await Store.open(database.url, f"heir-{n}") for n in range(4)]
    names = [f"heir-{n}" for n in range(4)]
    claimed = []

    async def claim(heir):
        while some := await heir.claim_pending(names, 7):
            claimed.extend(row.facts.request_id for row in some)

    await asyncio.gather(*(claim(heir) for heir in heirs for _ in range(3)))
    assert sorted(claimed) == sorted(rows)
    for heir in heirs:
        await heir.close()


async def test_what_is_known_and_not_charged_yet_comes_back_whole(dead, alive):
    known = waiting(
        source=Source.GENERATION,
        served_model="openai/gpt-4o-2024-08-06",
        provider="OpenAI",
        prompt_tokens=11,
        completion_tokens=22,
        total_tokens=33,
        cached_tokens=4,
        reasoning_tokens=5,
        cost=Decimal("0.000123456789"),
        cost_nano=123_457,
        ttft_ms=180,
        duration_ms=950,
        generation_id="gen-1",
        reason="the client left",
        outcome=Status.ABORTED,
        candidates=("openai/gpt-4o", "openai/gpt-4o-mini"),
        aliases=(("openai/gpt-4o-2024-08-06",), ()),
    )
    await dead.write([], [known])
    [claimed] = await alive.claim_pending(["alive"], 10)
    assert claimed == known
    assert claimed.counted_models() == ("openai/gpt-4o", "openai/gpt-4o-2024-08-06")
    assert await alive.spend(0) == []


async def test_what_is_known_later_replaces_what_was_not(dead):
    await dead.write([], [waiting()])
    known = waiting(cost=Decimal("0.5"), cost_nano=500_000_000, source=Source.USAGE)
    await dead.write([], [known])
    assert await dead.pending() == [known]


async def test_a_node_asks_which_requests_are_over(dead):
    names = [f"r-{n}" for n in range(1100)]
    await dead.write([], [record(name) for name in names[::2]])
    await dead.write([], [waiting("r-1"), record("r-3", status=Status.REFUSED, requests=0)])
    assert await dead.settled(names) == {*names[::2], "r-3"}
    assert await dead.settled([]) == set()
