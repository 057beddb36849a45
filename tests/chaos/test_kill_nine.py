"""kill -9 at random moments under load, again and again: afterwards the books are right to the last digit.

A run prints its seed; `FAREGATE_CHAOS_SEED=... FAREGATE_CHAOS_KILLS=20` repeats it, or makes it longer.
"""

import os
import random
import time
from collections import Counter
from pathlib import Path

from chaos_books import Load, Record, assert_counters_are_records, assert_records_are_bills, bills_by_id, records_of
from commands import ADMIN_KEY, CONNECTION_KEY, DEADLINE, UPSTREAM_KEY, Gateway, Simulator
from open_webui import somebody

SEED = int(os.environ["FAREGATE_CHAOS_SEED"])
KILLS = int(os.environ.get("FAREGATE_CHAOS_KILLS", "4"))

LIMITS = [
    {"meter": "usd", "window": "day", "amount": "1000"},
    {"meter": "usd", "window": "month", "amount": "9000", "scope": "everyone"},
    {"meter": "tokens", "window": "month", "amount": 10**9},
    {"meter": "requests", "window": "total", "amount": 10**6},
    {"meter": "concurrent", "amount": 100},
]


def test_after_every_kill_the_records_are_the_bills_and_the_counters_are_the_records(tmp_path: Path):
    print(f"seed {SEED}, {KILLS} kills")
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
    for number in range(KILLS):
        gateway = Gateway.start(tmp_path, settings)
        if number == 0:
            gateway.set_policy(limits=LIMITS, max_output_tokens=2000)
        load = Load(lambda url=gateway.url: [url], people, chance.randrange(10**6))
        load.start()
        # Not waiting for anything: when in the life of its requests the process dies is what is tried out.
        time.sleep(chance.uniform(0.3, 2.0))
        gateway.process.kill()
        load.stop()

    gateway = Gateway.start(tmp_path, settings)
    records = settled(gateway)

    assert_records_are_bills(records, bills_by_id(simulator.bills()))
    for person in people:
        own = [record for record in records if record["email"] == person.email]
        if own:
            assert_counters_are_records(gateway.quota(person.email), own)
    print(f"{len(records)} records: {Counter((r['status'], r['source']) for r in records)}")
    gateway.process.stop()
    simulator.stop()


def settled(gateway: Gateway) -> list[Record]:
    """All records, once what they cost is known."""
    deadline = time.monotonic() + DEADLINE
    while gateway.usage(status="pending", limit=1):
        assert time.monotonic() < deadline, "some requests are never settled"
        time.sleep(0.1)
    return records_of(gateway)
