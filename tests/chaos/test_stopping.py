"""SIGTERM under load: what runs may finish, or is cut; all is settled and written; and the process ends well."""

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing
from decimal import Decimal
from pathlib import Path

import httpx
import pytest
from books import until
from chaos_books import (
    Habits,
    Load,
    Record,
    assert_counters_are_records,
    assert_records_are_bills,
    bills_by_id,
    records_of,
)
from commands import Gateway, Simulator
from fleet import ask, defaults, running
from open_webui import Person, somebody
from postgres import Postgres
from redis_eyes import Eyes
from redis_server import RedisServer

LIMITS = [
    {"meter": "usd", "window": "day", "amount": "1000"},
    {"meter": "requests", "window": "total", "amount": 10**6},
    {"meter": "concurrent", "amount": 100},
]
SHORT = ("Hi", "Hi [[pace=0.02]] [[tokens=40]]", "Hi [[wait=0.2]]", "Hi [[no-usage]]")
LONG = ("Hi [[pace=0.05]] [[tokens=1500]]", "Hi [[pace=0.05]] [[tokens=1500]] [[provider=Groq]]")
"""Longer than any test waits."""


class Place:
    """Where a gateway keeps its books: in its folder, or in a Redis and a PostgreSQL. A later one goes on with them."""

    def __init__(self, kind: str, folder: Path, simulator: Simulator, ends: ExitStack) -> None:
        self.simulator = simulator
        self.redis: RedisServer | None = None
        self.postgres: Postgres | None = None
        self._folder = folder
        self._ends = ends
        self._settings = defaults(simulator) | {"RECONCILE_DELAYS": "0.2,0.3,0.5,1"}
        if kind == "shared":
            self.redis = ends.enter_context(running(RedisServer()))
            self.postgres = ends.enter_context(running(Postgres()))
            self._database = self.postgres.create_database()
            self._settings |= {
                "REDIS_URL": self.redis.url,
                "DATABASE_URL": self.postgres.url(self._database),
                # A machine that is busy with all this is not to be taken for a Redis that is away.
                "REDIS_CONNECT_TIMEOUT": "2",
                "REDIS_CALL_TIMEOUT": "2",
            }

    def start(self, **settings: str) -> Gateway:
        gateway = Gateway.start(self._folder, self._settings | settings)
        self._ends.callback(gateway.process.kill)
        return gateway

    def final_records(self) -> set[str]:
        """The ids of all requests of which the database has the final record, past Faregate."""
        return {str(row[0]) for row in self._sql("SELECT request_id FROM usage_records WHERE status <> 'pending'")}

    def kept_records(self) -> set[str]:
        """The ids of all requests of which the database has a record, past Faregate."""
        return {str(row[0]) for row in self._sql("SELECT request_id FROM usage_records")}

    def unwritten(self) -> int:
        """Rows that Redis keeps for the database."""
        if self.redis is None:
            return 0
        with closing(Eyes(self.redis)) as eyes:
            return sum(trace.rows for trace in eyes.traces())

    def _sql(self, statement: str) -> list[tuple[str | None, ...]]:
        if self.postgres is not None:
            return [row for row in self.postgres.sql(self._database, statement) if row != ("",)]
        with closing(sqlite3.connect(self._folder / "data" / "faregate.db")) as connection:
            return connection.execute(statement).fetchall()


@pytest.fixture(params=["embedded", "shared"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as ends:
        simulator = Simulator(tmp_path, "--generation-delay", "0.1")
        ends.callback(simulator.stop)
        yield Place(request.param, tmp_path, simulator, ends)


def test_on_sigterm_what_runs_may_finish_and_what_takes_too_long_is_cut_and_nothing_is_lost(place: Place):
    people = [somebody() for _ in range(4)]
    first = place.start(SHUTDOWN_GRACE="2")
    first.set_policy(limits=LIMITS, max_output_tokens=2000)
    load = begin(first, people, place.simulator, (*SHORT * 3, *LONG))

    first.process.terminate()
    code = first.process.wait()
    load.stop()

    print(f"requests: {dict(load.outcomes)}")
    assert code == 0, first.process.output
    # Nobody was turned away who had got in.
    assert set(load.outcomes) <= {"200", "left", "broken off"}
    with pytest.raises(httpx.ConnectError):
        ask(first, somebody())
    # All is in the database: who has to wait for a figure of OpenRouter's, as pending.
    assert set(load.served) <= place.kept_records()
    assert place.unwritten() == 0
    assert_the_books_are_right(place, people)


def test_a_second_sigterm_hurries_and_loses_nothing_that_was_settled(place: Place):
    people = [somebody() for _ in range(4)]
    # More than a test waits for the end of a process.
    first = place.start(SHUTDOWN_GRACE="600")
    first.set_policy(limits=LIMITS, max_output_tokens=2000)
    load = begin(first, people, place.simulator, (*SHORT, *LONG * 2))
    settled = {str(r["request_id"]) for r in records_of(first) if r["status"] != "pending"}
    assert settled

    first.process.terminate()
    first.process.await_line("no new requests")
    first.process.terminate()
    code = first.process.wait()
    load.stop()

    print(f"requests: {dict(load.outcomes)}")
    assert code == 0, first.process.output
    assert settled <= place.final_records()
    assert set(load.served) <= place.kept_records()
    assert place.unwritten() == 0
    assert_the_books_are_right(place, people)


@pytest.mark.parametrize("place", ["shared"], indirect=True)
def test_a_postgresql_that_says_nothing_does_not_keep_a_node_from_ending_well(place: Place):
    people = [somebody() for _ in range(4)]
    first, other = place.start(SHUTDOWN_GRACE="2"), place.start()
    first.set_policy(limits=LIMITS, max_output_tokens=2000)
    load = begin(first, people, place.simulator, SHORT)
    place.postgres.pause()
    before = len(load.served)
    until(lambda: len(load.served) > before + 20)

    first.process.terminate()
    code = first.process.wait()
    load.stop()
    place.postgres.resume()

    print(f"requests: {dict(load.outcomes)}")
    assert code == 0, first.process.output
    # What it left in Redis is written by whoever is there.
    until(lambda: set(load.served) <= place.kept_records())
    other.process.stop()
    assert_the_books_are_right(place, people)


def begin(gateway: Gateway, people: list[Person], simulator: Simulator, texts: tuple[str, ...]) -> Load:
    """People who ask; some of them have been answered, and some are being answered, when this returns."""
    load = Load(lambda: [gateway.url], people, 1, Habits(at_once=12, models=("simulator/plain",), texts=texts))
    load.start()
    until(lambda: len(load.served) > 12 and simulator.stats()["in_flight"] >= 3)
    return load


def assert_the_books_are_right(place: Place, people: list[Person]) -> None:
    """Whoever comes next brings all to its end."""
    gateway = place.start()
    until(lambda: not gateway.usage(status="pending", limit=1))
    bills = bills_by_id(place.simulator.bills())

    def charged() -> Decimal:
        return sum((Decimal(str(record["cost"])) for record in records_of(gateway)), Decimal(0))

    # What the node before left to no row, only to its hold, is settled when its lease is over.
    until(lambda: charged() >= sum(bills.values()))
    records = records_of(gateway)
    assert_records_are_bills(records, bills)
    for person in people:
        own: list[Record] = [record for record in records if record["email"] == person.email]
        assert_counters_are_records(gateway.quota(person.email), own)
    gateway.process.stop()
