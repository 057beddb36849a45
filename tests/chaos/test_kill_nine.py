"""kill -9 at random moments under load, again and again: afterwards the books are right to the last digit.

A run prints its seed; `FAREGATE_CHAOS_SEED=... FAREGATE_CHAOS_ROUNDS=20` repeats it, or makes it longer.
"""

import asyncio
import os
import random
import threading
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path

import httpx
from commands import ADMIN_KEY, CONNECTION_KEY, DEADLINE, UPSTREAM_KEY, Gateway, Simulator
from open_webui import Person, plain_headers, somebody, user_turn

SEED = int(os.environ.get("FAREGATE_CHAOS_SEED", random.SystemRandom().randrange(10**6)))
ROUNDS = int(os.environ.get("FAREGATE_CHAOS_ROUNDS", "4"))
AT_ONCE = 20

LIMITS = [
    {"meter": "usd", "window": "day", "amount": "1000"},
    {"meter": "usd", "window": "month", "amount": "9000", "scope": "everyone"},
    {"meter": "tokens", "window": "month", "amount": 10**9},
    {"meter": "requests", "window": "total", "amount": 10**6},
    {"meter": "concurrent", "amount": 100},
]
MODELS = ["openai/gpt-4o-mini", "simulator/plain", "simulator/slow"]
TEXTS = [
    "Hi",
    "Hi [[pace=0.02]] [[tokens=60]]",
    "Hi [[pace=0.05]] [[tokens=40]] [[provider=Groq]]",
    "Hi [[no-usage]]",
    "Hi [[cost=negative]]",
    "Hi [[generation-lost]] [[no-usage]]",
    "Hi [[byok]]",
    "Hi [[wait=0.3]]",
    "Hi [[cut=3]]",
    "Hi [[cut=0]]",
    "Hi [[error=429]]",
    "Hi [[error-after=3]]",
]

Record = dict[str, object]


def test_after_every_kill_the_records_are_the_bills_and_the_counters_are_the_records(tmp_path: Path):
    print(f"seed {SEED}, {ROUNDS} rounds")
    chance = random.Random(SEED)
    people = [somebody() for _ in range(6)]
    simulator = Simulator(tmp_path, "--generation-delay", "0.1")
    settings = {
        "OPENROUTER_API_KEY": UPSTREAM_KEY,
        "OPENROUTER_BASE_URL": f"{simulator.url}/api/v1",
        "ADMIN_API_KEY": ADMIN_KEY,
        "GATEWAY_API_KEYS": f"tests:{CONNECTION_KEY}",
        "RECONCILE_DELAYS": "0.2,0.3,0.5,1",
    }
    for number in range(ROUNDS):
        gateway = Gateway.start(tmp_path, settings)
        if number == 0:
            gateway.set_policy(limits=LIMITS, max_output_tokens=2000)
        load = Load(gateway, people, chance.randrange(10**6))
        load.start()
        # Not waiting for anything: when in the life of its requests the process dies is what is tried out.
        time.sleep(chance.uniform(0.3, 2.0))
        gateway.process.kill()
        load.stop()

    gateway = Gateway.start(tmp_path, settings)
    records = settled(gateway)
    bills = {str(bill["id"]): Decimal(str(bill["total"])) for bill in simulator.bills()}

    assert_records_are_bills(records, bills)
    for person in people:
        assert_counters_are_records(gateway, person, records)
    print(f"{len(records)} records: {Counter((r['status'], r['source']) for r in records)}")
    gateway.process.stop()
    simulator.stop()


class Load(threading.Thread):
    """Many clients at once, some of which leave, until told to stop."""

    def __init__(self, gateway: Gateway, people: list[Person], seed: int) -> None:
        super().__init__()
        self._url = f"{gateway.url}/v1/chat/completions"
        self._people = people
        self._chance = random.Random(seed)
        self._stopping = False

    def stop(self) -> None:
        self._stopping = True
        self.join(DEADLINE)
        assert not self.is_alive()

    def run(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        limits = httpx.Limits(max_connections=AT_ONCE)
        async with httpx.AsyncClient(timeout=DEADLINE, limits=limits) as client:
            await asyncio.gather(*(self._ask_again_and_again(client) for _ in range(AT_ONCE)))

    async def _ask_again_and_again(self, client: httpx.AsyncClient) -> None:
        chance = self._chance
        while not self._stopping:
            headers = plain_headers(chance.choice(self._people), CONNECTION_KEY)
            body = user_turn(chance.choice(TEXTS), model=chance.choice(MODELS), stream=chance.random() < 0.6, tools=[])
            leaves = chance.random() < 0.15
            try:
                async with client.stream("POST", self._url, headers=headers, json=body) as answer:
                    async for _ in answer.aiter_lines():
                        if leaves:
                            break
            except httpx.HTTPError:
                # It has been killed; whoever asks next is refused until the round is over.
                await asyncio.sleep(0.02)


def settled(gateway: Gateway) -> list[Record]:
    """All records, once what they cost is known."""
    deadline = time.monotonic() + DEADLINE
    while gateway.usage(status="pending", limit=1):
        assert time.monotonic() < deadline, "some requests are never settled"
        time.sleep(0.1)
    records: list[Record] = []
    while True:
        more = {"before": str(records[-1]["request_id"])} if records else {}
        page = gateway.usage(limit=1000, **more)
        records += page
        if len(page) < 1000:
            return records


def assert_records_are_bills(records: list[Record], bills: dict[str, Decimal]) -> None:
    assert max(Counter(record["request_id"] for record in records).values()) == 1
    named = [record for record in records if record["generation_id"]]
    assert max(Counter(record["generation_id"] for record in named).values()) == 1
    for record in named:
        cost, bill = Decimal(str(record["cost"])), bills.get(str(record["generation_id"]), Decimal(0))
        # Only of what OpenRouter does not tell an estimate is made, and never one below the bill.
        assert cost == bill or (record["source"] == "estimate" and cost > bill), (record, bill)
    # What it billed and never named to us is covered by estimates, one for each such request.
    known = {str(record["generation_id"]) for record in named}
    unnamed = [bill for name, bill in bills.items() if name not in known and bill > 0]
    estimates = [Decimal(str(r["cost"])) for r in records if r["source"] == "estimate" and r["generation_id"] is None]
    assert len(unnamed) <= len(estimates)
    assert sum(unnamed) <= sum(estimates)


def assert_counters_are_records(gateway: Gateway, person: Person, records: list[Record]) -> None:
    own = [r for r in records if r["email"] == person.email and r["status"] != "refused"]
    if not own:
        return
    quota = {(entry["meter"], entry["scope"]): entry for entry in gateway.quota(person.email)}
    assert not [entry for entry in quota.values() if Decimal(str(entry["held"])) != 0]
    assert quota["requests", "user"]["used"] == len(own)
    assert quota["tokens", "user"]["used"] == sum(int(str(r["total_tokens"])) for r in own)
    # Counters are in whole nano-dollars, rounded up for each record.
    nano = Decimal("0.000000001")
    spent = sum((Decimal(str(r["cost"])).quantize(nano, "ROUND_CEILING") for r in own), Decimal(0))
    assert Decimal(str(quota["usd", "user"]["used"])) == spent
