"""Load on gateways that may die, and what must be true of the books afterwards."""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import NamedTuple

import httpx
from commands import CONNECTION_KEY, DEADLINE, Gateway
from open_webui import Person, plain_headers, user_turn

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

PAUSE = 0.05
"""Seconds that a client waits after an answer that was none."""

Record = dict[str, object]


class Habits(NamedTuple):
    """How people ask: how many at once, what about, and how many of them leave before the end."""

    at_once: int = 20
    models: Sequence[str] = MODELS
    texts: Sequence[str] = TEXTS
    leave: float = 0.15


class Load(threading.Thread):
    """Many clients at once, some of which leave, until told to stop."""

    def __init__(
        self, urls: Callable[[], Sequence[str]], people: Sequence[Person], seed: int, habits: Habits | None = None
    ) -> None:
        """`urls` are the gateways that there are at the moment."""
        super().__init__()
        self.outcomes: Counter[str] = Counter()
        """Requests by status, or by how they ended without one."""
        self.served: list[str] = []
        """The ids of those that were answered."""
        self._urls = urls
        self._people = people
        self._chance = random.Random(seed)
        self._habits = habits or Habits()
        self._stopping = False

    def stop(self) -> None:
        self._stopping = True
        self.join(DEADLINE)
        assert not self.is_alive()

    def run(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        at_once = self._habits.at_once
        limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once)
        async with httpx.AsyncClient(timeout=DEADLINE, limits=limits) as client:
            await asyncio.gather(*(self._ask_again_and_again(client) for _ in range(at_once)))

    async def _ask_again_and_again(self, client: httpx.AsyncClient) -> None:
        chance, habits = self._chance, self._habits
        while not self._stopping:
            url = f"{chance.choice(self._urls())}/v1/chat/completions"
            headers = plain_headers(chance.choice(self._people), CONNECTION_KEY)
            text, model = chance.choice(habits.texts), chance.choice(habits.models)
            body = user_turn(text, model=model, stream=chance.random() < 0.6, tools=[])
            leaves = chance.random() < habits.leave
            try:
                async with client.stream("POST", url, headers=headers, json=body) as answer:
                    self.outcomes[str(answer.status_code)] += 1
                    if answer.status_code == 200:
                        self.served.append(answer.headers["x-request-id"])
                    async for _ in answer.aiter_lines():
                        if leaves:
                            self.outcomes["left"] += 1
                            break
                if answer.status_code in (429, 503):
                    await asyncio.sleep(PAUSE)
            except httpx.HTTPError:
                # It has been killed; whoever asks it next is refused until there is another.
                self.outcomes["broken off"] += 1
                await asyncio.sleep(PAUSE)


def records_of(gateway: Gateway) -> list[Record]:
    """All records there are, newest first."""
    records: list[Record] = []
    while True:
        more = {"before": str(records[-1]["request_id"])} if records else {}
        page = gateway.usage(limit=1000, **more)
        records += page
        if len(page) < 1000:
            return records


def bills_by_id(bills: list[dict[str, object]]) -> dict[str, Decimal]:
    """What OpenRouter charged for each generation, in dollars."""
    return {str(bill["id"]): Decimal(str(bill["total"])) for bill in bills}


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


def assert_counters_are_records(quota: list[dict[str, object]], records: list[Record], scope: str = "user") -> None:
    """`records` are all of the scope. Sliding windows are left out: the sums here know no time."""
    charged = [record for record in records if record["status"] != "refused"]
    # Counters are in whole nano-dollars, rounded up for each record.
    nano = Decimal("0.000000001")
    spent = sum((Decimal(str(r["cost"])).quantize(nano, "ROUND_CEILING") for r in charged), Decimal(0))
    sums = {
        "requests": Decimal(len(charged)),
        "tokens": Decimal(sum(int(str(r["total_tokens"])) for r in charged)),
        "usd": spent,
        "concurrent": Decimal(0),
    }
    own = [entry for entry in quota if entry["scope"] == scope]
    assert own
    for entry in own:
        assert Decimal(str(entry["held"])) == 0, entry
        if entry["window"] != "minute":
            assert Decimal(str(entry["used"])) == sums[str(entry["meter"])], (entry, sums)
