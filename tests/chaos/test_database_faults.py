"""A gateway, Redis, PostgreSQL: each killed under load, one at a time, at random points; every bill is charged.

A run prints its seed; `FAREGATE_CHAOS_SEED=...` repeats it, `FAREGATE_CHAOS_ROUNDS=10` goes on with the seeds after it.
"""

import os
import random
import time
from collections import Counter, defaultdict
from decimal import Decimal
from pathlib import Path

import pytest
from chaos_books import (
    TEXTS,
    Habits,
    Load,
    Record,
    assert_counters_are_records,
    assert_records_are_bills,
    bills_by_id,
    records_of,
)
from database_world import DatabaseWorld
from open_webui import somebody

FIRST = int(os.environ["FAREGATE_CHAOS_SEED"])
ROUNDS = int(os.environ.get("FAREGATE_CHAOS_ROUNDS", "1"))

LIMITS = [
    {"meter": "usd", "window": "day", "amount": "1000"},
    {"meter": "usd", "window": "month", "amount": "9000", "scope": "everyone"},
    {"meter": "tokens", "window": "month", "amount": 10**9},
    {"meter": "requests", "window": "total", "amount": 10**6},
    {"meter": "concurrent", "amount": 100},
]
CAP = 1000
PRICES = {"openai/gpt-4o-mini": ("0.15", "0.6"), "simulator/plain": ("1", "4"), "simulator/slow": ("1", "4")}
"""Of the models that are asked, in dollars per million tokens of prompt and of answer."""

# Some are under way without a name for a while.
HABITS = Habits(at_once=12, models=tuple(PRICES), texts=(*TEXTS, "Hi [[wait=0.5]]"))


@pytest.mark.parametrize("seed", range(FIRST, FIRST + ROUNDS))
def test_whichever_of_the_three_is_killed_every_bill_has_its_one_record(tmp_path: Path, seed: int):
    print(f"\nseed {seed}")
    chance = random.Random(seed)
    people = [somebody() for _ in range(8)]
    with DatabaseWorld(tmp_path, chance, {"limits": LIMITS, "max_output_tokens": CAP}) as world:
        load = Load(world.urls, people, chance.randrange(10**6), HABITS)
        load.start()
        try:
            faults = [world.kill, world.restart, world.lose_postgres]
            chance.shuffle(faults)
            for fault in faults:
                # Not waiting for anything: when in the life of requests it happens is what is tried out.
                time.sleep(chance.uniform(0.5, 2.0))
                fault()
                world.recovered()
        finally:
            load.stop()
            print(f"survived, with logs in {tmp_path}:", *world.said, sep="\n")
            print(f"requests: {dict(load.outcomes)}")
        world.await_quiet()

        gateway = world.gateways[0]
        records = records_of(gateway)
        print(f"{len(records)} records: {dict(Counter((r['status'], r['source']) for r in records))}")
        assert set(load.served) <= {str(record["request_id"]) for record in records}
        assert_records_are_bills(records, bills_by_id(world.simulator.bills()))
        for record in records:
            if record["source"] == "estimate" and record["generation_id"] is None:
                assert Decimal(str(record["cost"])) == bound_of(record), record
        own: defaultdict[str, list[Record]] = defaultdict(list)
        for record in records:
            own[str(record["email"])].append(record)
        for person in people:
            assert_counters_are_records(gateway.quota(person.email), own[person.email])
        assert not world.eyes.live_holds()
        assert not [sight for sight in world.eyes.counters() if sight.held]


def bound_of(record: Record) -> Decimal:
    """The most that a request can have cost whose answer was never named: its hold."""
    prompt, answer = map(Decimal, PRICES[str(record["model"])])
    assert record["completion_tokens"] == CAP
    return (prompt * int(str(record["prompt_tokens"])) + answer * CAP) / 10**6
