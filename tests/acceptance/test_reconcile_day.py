"""`faregate reconcile` over a real simulator and a real database: what is missing is told to the last digit."""

import re
import subprocess
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import httpx
import pytest
from commands import DEADLINE, FAREGATE, UPSTREAM_KEY, Gateway, Simulator
from databases import Database, sqlite_database
from fleet import defaults

from faregate.records import Facts, Source, Status, UsageRecord
from faregate.store.store import Store

MANAGEMENT_KEY = "sk-or-v1-mgmt-of-the-tests"
DAYS_AGO = 2


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    simulator = Simulator(tmp_path_factory.mktemp("simulator"))
    yield simulator
    simulator.stop()


@pytest.fixture
def simulator(running: Simulator) -> Simulator:
    """An OpenRouter without bills."""
    running.reset()
    return running


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return sqlite_database(tmp_path / "faregate.db")


def the_day(simulator: Simulator) -> date:
    """The day of the bills."""
    return datetime.fromtimestamp(simulator.bills()[0]["created"], UTC).date()


def bill(simulator: Simulator, text: str = "Hello", model: str = "openai/gpt-4o-mini") -> None:
    """Somebody is billed on that day."""
    body = {"model": model, "messages": [{"role": "user", "content": f"{text} [[days-ago={DAYS_AGO}]]"}]}
    headers = {"Authorization": f"Bearer {UPSTREAM_KEY}"}
    httpx.post(f"{simulator.url}/api/v1/chat/completions", json=body, headers=headers).raise_for_status()


def record_of(bill: dict[str, object], **more: object) -> UsageRecord:
    """Our record of that bill."""
    facts = Facts(uuid.uuid4().hex, bill["created"], "tests", "zoe", None, (), "default", bill["model"])
    known = {
        "source": Source.USAGE,
        "served_model": bill["served_model"],
        "provider": bill["provider"],
        "cost": Decimal(bill["total"]),
        "generation_id": bill["id"],
    }
    return UsageRecord(facts, **({"status": Status.COMPLETED} | known | more))


async def keep(database: Database, records: list[UsageRecord]) -> None:
    store = await Store.open(database.url)
    await store.write([], records)
    await store.close()


async def kept(database: Database, day: date) -> list[tuple[str, str, Decimal]]:
    store = await Store.open(database.url)
    rows = await store.reconciliation(day)
    await store.close()
    return [(row.model, row.provider, row.difference) for row in rows]


def reconcile(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [FAREGATE, "reconcile", *arguments],
        cwd=folder,
        env={"HOME": str(folder)} | settings,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE,
    )


@pytest.fixture
def ask(simulator: Simulator, database: Database, tmp_path: Path):
    """Compares a day, that day unless told otherwise."""
    known = {
        "DATABASE_URL": database.url,
        "OPENROUTER_API_KEY": UPSTREAM_KEY,
        "OPENROUTER_BASE_URL": f"{simulator.url}/api/v1",
        "OPENROUTER_MANAGEMENT_KEY": MANAGEMENT_KEY,
    }

    def asked(*arguments: str, day: date | None = None, **settings: str) -> subprocess.CompletedProcess[str]:
        ended = reconcile(tmp_path, "--day", f"{day or the_day(simulator)}", *arguments, **(known | settings))
        assert MANAGEMENT_KEY not in ended.stdout + ended.stderr
        return ended

    return asked


def plain(amount: Decimal) -> str:
    return format(amount.normalize(), "f")


async def test_a_day_that_is_the_same_on_both_sides_agrees(simulator: Simulator, database: Database, ask):
    for text in ("Hello", "Hello again [[tokens=7]]", "Hi [[byok]]", "Hi [[permaslug]]", "Hi [[provider=Groq]]"):
        bill(simulator, text)
    bill(simulator, "Hello", "simulator/costly")
    bill(simulator, "Hello", "google/gemma-4-31b-it:free")
    bills = simulator.bills()
    await keep(database, [record_of(bill) for bill in bills])

    ended = ask("--tolerance", "0")
    assert (ended.returncode, ended.stderr) == (0, "")
    spent = plain(sum(Decimal(bill["total"]) for bill in bills))
    assert re.search(rf"^total +7 +7 +{spent} +{spent} +0$", ended.stdout, re.MULTILINE), ended.stdout
    assert await kept(database, the_day(simulator)) == [
        ("google/gemma-4-31b-it:free", "Google AI Studio", 0),
        ("openai/gpt-4o-mini", "Groq", 0),
        ("openai/gpt-4o-mini", "OpenAI", 0),
        ("simulator/costly", "OpenAI", 0),
    ]


async def test_a_record_that_is_missing_is_told_exactly(simulator: Simulator, database: Database, ask):
    bill(simulator)
    bill(simulator, "Hello", "simulator/costly")
    lost, found = sorted(simulator.bills(), key=lambda bill: bill["model"], reverse=True)
    assert lost["model"] == "simulator/costly"
    await keep(database, [record_of(found)])

    ended = ask()
    missing = Decimal(lost["total"])
    assert missing > Decimal("0.01")
    assert ended.returncode == 1, ended.stderr
    for row in (rf"simulator/costly +OpenAI +0 +1 +0 +{plain(missing)}", r"total +1 +2 +\S+ +\S+"):
        assert re.search(rf"^{row} +-{plain(missing)}$", ended.stdout, re.MULTILINE), ended.stdout
    assert "A difference is above the tolerance of $0.01." in ended.stdout
    assert await kept(database, the_day(simulator)) == [
        ("openai/gpt-4o-mini", "OpenAI", 0),
        ("simulator/costly", "OpenAI", -missing),
    ]


async def test_a_difference_within_the_tolerance_is_shown_and_is_none(simulator: Simulator, database: Database, ask):
    bill(simulator)
    (billed,) = simulator.bills()
    off = Decimal("0.000000000001")
    await keep(database, [record_of(billed, cost=Decimal(billed["total"]) + off)])
    for tolerance, code in (("0.000000000001", 0), ("0", 1)):
        ended = ask("--tolerance", tolerance)
        assert ended.returncode == code
        assert "+0.000000000001\n" in ended.stdout


async def test_comparing_again_after_the_record_has_come_agrees(simulator: Simulator, database: Database, ask):
    bill(simulator, "Hello", "simulator/costly")
    (billed,) = simulator.bills()
    waiting = record_of(billed, status=Status.PENDING, cost=None, outcome=Status.ABORTED)
    await keep(database, [waiting])
    ended = ask()
    assert ended.returncode == 1
    assert "1 of its requests are pending, and not in these sums" in ended.stdout

    settled = UsageRecord(
        waiting.facts,
        Status.ABORTED,
        Source.GENERATION,
        **{name: getattr(waiting, name) for name in ("served_model", "provider", "generation_id")},
        cost=Decimal(billed["total"]),
    )
    await keep(database, [settled])
    assert ask().returncode == 0
    assert await kept(database, the_day(simulator)) == [("simulator/costly", "OpenAI", 0)]


def test_a_day_on_which_nothing_was_asked_agrees(ask):
    assert ask(day=datetime.now(UTC).date() - timedelta(days=5)).returncode == 0


@pytest.mark.parametrize(
    ("days_ago", "settings", "sentence"),
    [
        (0, {}, "has not ended yet in UTC"),
        (32, {}, "is too long ago: OpenRouter tells of the last 30 days only"),
        (1, {"OPENROUTER_MANAGEMENT_KEY": ""}, "OPENROUTER_MANAGEMENT_KEY should hold a management key"),
        (1, {"OPENROUTER_MANAGEMENT_KEY": UPSTREAM_KEY}, "OPENROUTER_MANAGEMENT_KEY should be a management key"),
        (1, {"OPENROUTER_MANAGEMENT_KEY": "a b"}, "OPENROUTER_MANAGEMENT_KEY should be printable ASCII"),
        (1, {"OPENROUTER_BASE_URL": "http://127.0.0.1:1/api/v1"}, "OpenRouter could not be asked (no connection"),
        (1, {"DATABASE_URL": "postgresql://127.0.0.1:1/nowhere"}, "the database cannot be reached"),
    ],
    ids=["today", "long ago", "no key", "ordinary key", "wrong key", "upstream away", "database away"],
)
def test_what_cannot_be_compared_is_said_in_one_sentence(ask, days_ago: int, settings: dict[str, str], sentence: str):
    ended = ask(day=datetime.now(UTC).date() - timedelta(days=days_ago), **settings)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("faregate: ")
    assert sentence in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [("--tolerance", "-1"), ("--tolerance", "NaN"), ("--day", "yesterday")])
def test_a_wrong_option_is_named(tmp_path: Path, arguments: tuple[str, str]):
    ended = reconcile(tmp_path, *arguments)
    assert ended.returncode == 2
    assert f"'{arguments[0]}'" in ended.stderr


async def test_without_a_day_it_is_yesterday(ask, simulator: Simulator, database: Database, tmp_path: Path):
    ended = reconcile(
        tmp_path,
        DATABASE_URL=database.url,
        OPENROUTER_API_KEY=UPSTREAM_KEY,
        OPENROUTER_BASE_URL=f"{simulator.url}/api/v1",
        OPENROUTER_MANAGEMENT_KEY=MANAGEMENT_KEY,
    )
    assert ended.returncode == 0, ended.stderr
    # The clock may have passed midnight meanwhile.
    today = datetime.now(UTC).date()
    assert ended.stdout[:10] in {f"{today - timedelta(days=days)}" for days in (1, 2)}


def test_a_running_gateway_compares_the_last_complete_day_by_itself(
    simulator: Simulator, database: Database, tmp_path: Path
):
    known = {"DATABASE_URL": database.url, "OPENROUTER_MANAGEMENT_KEY": MANAGEMENT_KEY}
    gateway = Gateway.start(tmp_path, defaults(simulator) | known)
    try:
        deadline = time.monotonic() + DEADLINE
        said = None
        while said is None and time.monotonic() < deadline:
            # It is done in the background, and kept in the database.
            time.sleep(0.05)
            jobs = {job["name"]: job for job in gateway.admin("GET", "/jobs").json()}
            said = jobs["reconciliation"]["said"]
        assert said is not None
        assert re.match(r"\d{4}-\d\d-\d\d: we charged \$0, OpenRouter \$", said), said
    finally:
        gateway.process.stop()
