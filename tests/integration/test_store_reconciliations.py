"""What was charged on a day, summed exactly, and what comparing it with OpenRouter gave."""

import asyncio
from datetime import date
from decimal import Decimal

import pytest
from databases import DEADLINE
from rows import NOON, record

from faregate.records import Source, Status
from faregate.store.reconciliations import DayRow, DaySum
from faregate.store.store import Store

DAY = (NOON - 43_200, NOON + 43_200)
FRIDAY, SATURDAY = date(2027, 1, 15), date(2027, 1, 16)
MODEL = "openai/gpt-4o"
TINY = Decimal("0.000000000001")


@pytest.fixture
async def store(database):
    store = await Store.open(database.url)
    yield store
    await store.close()


def charged(request_id, cost, *, served=MODEL, provider="OpenAI", **more):
    known = {"served_model": served, "provider": provider, "source": Source.USAGE, "generation_id": f"gen-{request_id}"}
    return record(request_id, cost=Decimal(cost), **(known | more))


def row(model=MODEL, provider="OpenAI", ours="1", theirs="1", **requests):
    return DayRow(
        model, provider, requests.get("ours_n", 1), Decimal(ours), requests.get("theirs_n", 1), Decimal(theirs)
    )


async def test_a_day_without_records_has_no_sums(store):
    assert await store.charged(*DAY) == ([], 0)


async def test_records_of_one_model_and_provider_are_one_sum_to_the_last_digit(store):
    costs = [Decimal("0.1"), TINY, Decimal("123456.789"), Decimal("0.2")]
    await store.write([], [charged(f"r-{n}", cost) for n, cost in enumerate(costs)])
    assert await store.charged(*DAY) == ([DaySum(MODEL, MODEL, (MODEL,), "OpenAI", 4, sum(costs))], 0)


async def test_a_day_has_its_first_instant_and_not_that_of_the_next_one(store):
    await store.write(
        [],
        [
            charged("before", "1", at=DAY[0] - 1e-6),
            charged("first", "2", at=DAY[0]),
            charged("last", "4", at=DAY[1] - 1e-6),
            charged("after", "8", at=DAY[1]),
        ],
    )
    (day,), _ = await store.charged(*DAY)
    assert day.cost == 6


async def test_every_name_and_provider_is_a_sum_of_its_own(store):
    await store.write(
        [],
        [
            charged("r-1", "1"),
            charged("r-2", "2", provider="Azure"),
            charged("r-3", "4", served="openai/gpt-4o-2024-08-06"),
            charged("r-4", "8", served=None, provider=None, source=Source.ESTIMATE, generation_id=None),
        ],
    )
    sums, _ = await store.charged(*DAY)
    assert {(day.served_model, day.provider): day.cost for day in sums} == {
        (MODEL, "OpenAI"): 1,
        (MODEL, "Azure"): 2,
        ("openai/gpt-4o-2024-08-06", "OpenAI"): 4,
        (None, None): 8,
    }


async def test_what_openrouter_cannot_know_of_is_not_compared(store):
    await store.write(
        [],
        [
            charged("free", "0"),
            charged("left early", "0", status=Status.ABORTED),
            charged("failed at a cost", "1", status=Status.FAILED),
            charged("failed", "0", status=Status.FAILED),
            charged("never sent", "0", status=Status.ABORTED, generation_id=None),
            charged("refused", "0", status=Status.REFUSED, requests=0, generation_id=None),
        ],
    )
    sums, pending = await store.charged(*DAY)
    assert (sum(day.requests for day in sums), sum(day.cost for day in sums), pending) == (3, 1, 0)


async def test_pending_records_are_counted_apart(store):
    waiting = [record(f"p-{n}", status=Status.PENDING, cost=cost) for n, cost in enumerate([None, Decimal(5)])]
    await store.write([], [*waiting, record("p-2", at=DAY[1], status=Status.PENDING, cost=None)])
    assert await store.charged(*DAY) == ([], 2)


async def test_a_comparison_is_kept_exactly_by_model_and_provider(store):
    rows = [
        row("z/z", ours=TINY, theirs="123456.000000000001"),
        row("a/a", "", ours_n=3, theirs_n=0, theirs="0"),
        row("a/a", "Groq", theirs="-0.5"),
    ]
    await store.save_reconciliation(FRIDAY, rows, NOON)
    assert await store.reconciliation(FRIDAY) == [rows[1], rows[2], rows[0]]
    assert await store.reconciliation(SATURDAY) == []


async def test_comparing_again_replaces_that_day_alone(store, database):
    await store.save_reconciliation(FRIDAY, [row("a/a"), row("b/b")], NOON)
    await store.save_reconciliation(SATURDAY, [row("a/a")], NOON)
    again = [row("b/b", ours="2"), row("c/c")]
    await store.save_reconciliation(FRIDAY, again, NOON + 60)
    assert await store.reconciliation(FRIDAY) == again
    assert await store.reconciliation(SATURDAY) == [row("a/a")]
    await store.save_reconciliation(FRIDAY, [], NOON + 120)
    assert await store.reconciliation(FRIDAY) == []


async def test_several_that_compare_a_day_at_once_leave_the_rows_of_one_of_them(database):
    stores = [await Store.open(database.url) for _ in range(4)]
    kept = [[row(f"m/{n}", ours=turn) for n in range(turn, turn + 5)] for turn in range(4)]
    async with asyncio.timeout(DEADLINE):
        for _ in range(5):
            await asyncio.gather(
                *(one.save_reconciliation(FRIDAY, rows, NOON) for one, rows in zip(stores, kept, strict=True))
            )
            assert await stores[0].reconciliation(FRIDAY) in kept
    for one in stores:
        await one.close()
