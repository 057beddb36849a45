"""Streams that are left at random events, over providers that stop the bill and providers that do not.

`FAREGATE_CHAOS_STREAMS=1000` makes it a thousand; a run prints its seed, `FAREGATE_CHAOS_SEED=...` repeats it.
"""

import asyncio
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

import httpx
import pytest
from books import until
from chaos_books import Record, assert_counters_are_records, assert_records_are_bills, bills_by_id, records_of
from commands import CONNECTION_KEY, DEADLINE, Gateway, Simulator
from fleet import defaults, running, sharing
from open_webui import Person, plain_headers, somebody, user_turn
from redis_server import RedisServer

SEED = int(os.environ["FAREGATE_CHAOS_SEED"])
STREAMS = int(os.environ.get("FAREGATE_CHAOS_STREAMS", "80"))

AT_ONCE = 40
LENGTH = 60
"""Events of a whole answer. That many are sent in about a second."""

MODELS = ("openai/gpt-4o-mini", "simulator/plain", "simulator/fee", "simulator/thinker", "openai/gpt-4.1-nano")
STOP = ("OpenAI", "Anthropic", "DeepSeek", "Together")
RUN_ON = ("Groq", "Mistral", "Google", "Amazon Bedrock", "Nobody Knows")
LIMITS = [
    {"meter": "usd", "window": "day", "amount": "1000"},
    {"meter": "tokens", "window": "total", "amount": 10**9},
    {"meter": "requests", "window": "total", "amount": 10**6},
    # Who has left counts until his stream has been read to its end.
    {"meter": "concurrent", "amount": STREAMS},
]
PICO = Decimal("1e-12")


@pytest.fixture
def simulator(tmp_path: Path) -> Iterator[Simulator]:
    running = Simulator(tmp_path, "--generation-delay", "0.1")
    yield running
    running.stop()


@pytest.fixture(params=["embedded", "redis"])
def settings(request: pytest.FixtureRequest, simulator: Simulator, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Those of a gateway over either engine."""
    own = defaults(simulator) | {"RECONCILE_DELAYS": "0.2,0.3,0.5,1,2"}
    if request.param == "embedded":
        yield own
        return
    with running(RedisServer()) as redis:
        # A machine that is busy with all this is not to be taken for a Redis that is away.
        yield own | sharing(redis.url, tmp_path) | {"REDIS_CONNECT_TIMEOUT": "2", "REDIS_CALL_TIMEOUT": "2"}


@pytest.fixture
def start(settings: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    """Starts a gateway, which should end well if the test does."""
    started: list[Gateway] = []

    def start(**more: str) -> Gateway:
        started.append(Gateway.start(tmp_path, settings | more))
        return started[-1]

    yield start
    for gateway in started:
        gateway.process.end()


def test_who_leaves_at_any_event_is_charged_what_openrouter_bills(start: Callable[..., Gateway], simulator: Simulator):
    print(f"\nseed {SEED}, {STREAMS} streams")
    person = somebody()
    gateway = start()
    gateway.set_policy(limits=LIMITS, max_output_tokens=500)

    asyncio.run(leave_all(gateway, person, random.Random(SEED), STREAMS))

    records = settled(gateway, simulator)
    print(f"{len(records)} records: {dict(Counter((r['status'], r['source']) for r in records))}")
    bills = simulator.bills()
    assert len(records) == len(bills) == STREAMS
    assert_records_are_bills(records, bills_by_id(bills))
    assert {record["generation_id"] for record in records} == {bill["id"] for bill in bills}
    charged = sum(Decimal(str(record["cost"])) for record in records)
    billed = sum(Decimal(str(bill["total"])) for bill in bills)
    print(f"charged {charged} dollars, billed {billed}")
    assert abs(charged - billed) <= PICO
    assert billed > 0
    # It was left where that stops the bill, and read to its end where it does not.
    left = Counter(str(bill["provider"]) for bill in bills if bill["cancelled"])
    assert set(left) <= set(STOP)
    assert left.total() > STREAMS / 10
    assert_counters_are_records(gateway.quota(person.email), records)


def test_with_the_setting_drain_no_stream_is_broken_off_and_each_tells_what_it_cost(
    start: Callable[..., Gateway], simulator: Simulator
):
    gateway = start(CLIENT_LEFT="drain")

    asyncio.run(leave_all(gateway, somebody(), random.Random(SEED), 20))

    records = settled(gateway, simulator)
    assert {record["source"] for record in records} == {"usage"}
    bills = simulator.bills()
    assert len(bills) == len(records) == 20
    assert not [bill for bill in bills if bill["cancelled"]]
    assert_records_are_bills(records, bills_by_id(bills))


async def leave_all(gateway: Gateway, person: Person, chance: random.Random, streams: int) -> None:
    """Ask for so many streams, some at once, and leave each of them at some event."""
    few = asyncio.Semaphore(AT_ONCE)
    async with httpx.AsyncClient(timeout=DEADLINE, limits=httpx.Limits(max_connections=None)) as client:

        async def begin(text: str, model: str, events: int) -> None:
            headers, body = plain_headers(person, CONNECTION_KEY), user_turn(text, model=model, tools=[])
            url = f"{gateway.url}/v1/chat/completions"
            async with client.stream("POST", url, headers=headers, json=body) as answer:
                assert answer.status_code == 200
                lines = (line async for line in answer.aiter_lines() if line.startswith("data: "))
                for _ in range(events):
                    if await anext(lines, None) is None:
                        break

        async def one(text: str, model: str, events: int) -> None:
            async with few:
                await begin(text, model, events)

        async def unseen(text: str, model: str) -> None:
            async with few:
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.5):
                        await begin(f"{text} [[wait=1]]", model, 0)

        asks = []
        for _ in range(streams):
            text = f"Hi [[tokens={LENGTH}]] [[pace=0.015]] [[provider={chance.choice(STOP + RUN_ON)}]]"
            model = chance.choice(MODELS)
            if chance.random() < 0.05:
                # Before there is an answer at all.
                asks.append(unseen(text, model))
            else:
                asks.append(one(text, model, chance.randrange(LENGTH + 3)))
        await asyncio.gather(*asks)


def settled(gateway: Gateway, simulator: Simulator) -> list[Record]:
    """All records, once upstream is done and what they cost is known."""
    until(lambda: simulator.stats()["in_flight"] == 0)
    until(lambda: len(records_of(gateway)) == simulator.stats()["requests"])
    until(lambda: not gateway.usage(status="pending", limit=1))
    return records_of(gateway)
