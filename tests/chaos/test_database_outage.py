"""Without PostgreSQL under load: nobody notices, and afterwards every record is there, once.

`FAREGATE_CHAOS_OUTAGE_SECONDS=300` makes it five minutes each time.
"""

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from decimal import Decimal
from pathlib import Path

import pytest
from chaos_books import Habits, Load, assert_counters_are_records, assert_records_are_bills, bills_by_id, records_of
from database_world import DatabaseWorld, readiness, try_admin, waiting
from fleet import ask
from open_webui import Person, somebody

SEED = int(os.environ["FAREGATE_CHAOS_SEED"])
SECONDS = float(os.environ.get("FAREGATE_CHAOS_OUTAGE_SECONDS", "4"))

LIMITS = [
    {"meter": "usd", "window": "day", "amount": "1000"},
    {"meter": "tokens", "window": "month", "amount": 10**9, "scope": "everyone"},
    {"meter": "requests", "window": "total", "amount": 10**6},
    {"meter": "concurrent", "amount": 100},
]
HABITS = Habits(
    at_once=8,
    texts=(
        *("Hi", "Hi [[wait=0.2]]", "Hi [[pace=0.02]] [[tokens=40]]") * 3,
        "Hi [[pace=0.05]] [[tokens=40]] [[provider=Groq]]",
        "Hi [[no-usage]]",
    ),
    leave=0.1,
)

ADMINISTRATION = (
    ("GET", "/usage", {}),
    ("POST", "/policies", {"json": {"id": "other"}}),
    ("GET", "/users", {}),
    ("GET", "/policies", {}),
)

Outage = Callable[[DatabaseWorld], AbstractContextManager[None]]


@pytest.mark.parametrize(
    "outage", [DatabaseWorld.killed, DatabaseWorld.silent, DatabaseWorld.crowded], ids=["killed", "silent", "crowded"]
)
def test_without_postgresql_no_request_fails_and_no_record_is_lost(tmp_path: Path, outage: Outage):
    print(f"\nseed {SEED}, {SECONDS:g} seconds")
    chance = random.Random(SEED)
    people = [somebody() for _ in range(10)]
    with DatabaseWorld(tmp_path, chance, {"limits": LIMITS, "max_output_tokens": 1000}) as world:
        load = Load(world.urls, people, chance.randrange(10**6), HABITS)
        load.start()
        try:
            world.until(lambda: len(load.served) > 20, "nobody is served")
            with outage(world):
                newcomers = go_through_it(world)
            world.recovered()
        finally:
            load.stop()
            print(f"requests: {dict(load.outcomes)}; logs in {tmp_path}")
        assert set(load.outcomes) <= {"200", "left"}
        world.await_quiet()
        world.until(lambda: not any(map(waiting, world.gateways)), "some rows are never written")

        gateway = world.gateways[0]
        records = records_of(gateway)
        print(f"{len(records)} records: {dict(Counter((r['status'], r['source']) for r in records))}")
        bills = bills_by_id(world.simulator.bills())
        assert_records_are_bills(records, bills)
        assert not [record for record in records if record["source"] == "estimate"]
        assert sum(Decimal(str(record["cost"])) for record in records) == sum(bills.values())
        ids = {str(record["request_id"]) for record in records}
        assert len(ids) == len(records) == load.outcomes["200"] + len(newcomers)
        assert set(load.served) <= ids
        known = {str(user["email"]) for user in gateway.admin("GET", "/users").json()}
        assert {person.email for person in newcomers} <= known
        for person in (*people, newcomers[0], newcomers[-1]):
            own = [record for record in records if record["email"] == person.email]
            assert_counters_are_records(gateway.quota(person.email), own)
        assert not world.eyes.live_holds()


def go_through_it(world: DatabaseWorld) -> list[Person]:
    """See for a while how it is without the database. Whom nobody had met before."""
    newcomers: list[Person] = []
    end = time.monotonic() + SECONDS
    # A statement that was under way may have been the last to be answered.
    for gateway in world.gateways:
        world.until(lambda asked=gateway: readiness(asked) == (200, "degraded"), "a node does not notice")
    few = sum(map(waiting, world.gateways))
    while not newcomers or time.monotonic() < end:
        for gateway in world.gateways:
            person = somebody()
            assert ask(gateway, person).status_code == 200
            newcomers.append(person)
            assert readiness(gateway) == (200, "degraded")
        method, path, more = ADMINISTRATION[len(newcomers) // 2 % len(ADMINISTRATION)]
        refusal = try_admin(world.gateways[0], method, path, **more)
        assert refusal.status_code == 503, (path, refusal.text)
        assert int(refusal.headers["retry-after"]) > 0
    many = sum(map(waiting, world.gateways))
    print(f"{many} rows wait for the database, {len(newcomers)} newcomers")
    assert many > few
    return newcomers
