"""How the database stands ten million usage records: `make bench-db` (ROWS=... for another number).

A PostgreSQL of its own, with its defaults and fsync on, is filled with records of the last ninety days. Measured are
the admin API of a running gateway on it, request by request over HTTP; how fast hours are added up; how many rows per
second `Store.write` brings there in batches of 500, as the outbox does; and how long it takes until somebody is served
when the counters have to be built from all these records. Nothing is asserted but that it works.
"""

import asyncio
import hashlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from uuid import uuid4

import asyncpg
import httpx
from rich.console import Console
from rich.table import Table

from faregate.directory import User
from faregate.records import Facts, Source, Status, UsageRecord
from faregate.store.store import Store

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests" / "integration"), str(ROOT / "tests" / "acceptance")]

import commands  # noqa: E402 - the path to it has just been set
from commands import ADMIN_KEY, CONNECTION_KEY, Gateway  # noqa: E402
from fleet import ask  # noqa: E402
from open_webui import somebody  # noqa: E402
from postgres import Postgres  # noqa: E402
from redis_server import RedisServer  # noqa: E402

ROWS = int(os.environ.get("ROWS", "10000000"))
DAYS = 90
PEOPLE = 20_000
AT_ONCE = 500_000
REPETITIONS = 21
LIMITS = [
    {"meter": "usd", "window": "month", "amount": "1000"},
    {"meter": "tokens", "window": "day", "amount": 10**9},
    {"meter": "requests", "window": "minute", "amount": 100},
]
BATCH = 500
WRITING_SECONDS = 10.0
RESULTS = ROOT / "bench" / "results" / "database.json"

# Some people ask far more than others, each of them five models; nine of ten requests are completed.
FILL = """
INSERT INTO usage_records (request_id, ts, user_id, email, connection, groups, policy_id, rules, model, models,
    served_model, provider, prompt_tokens, completion_tokens, total_tokens, cached_tokens, reasoning_tokens, cost,
    cost_nano, requests, status, source, task, chat_id, stream, ttft_ms, duration_ms, generation_id, era)
SELECT 'bench-' || n, $3::timestamptz - n * $4::interval, u.id, u.id || '@example.com', 'webui-' || n % 5,
    '["everybody","group-' || u.number % 200 || '"]', 'default', '[]', m.model, '["' || m.model || '"]', m.model,
    'provider-' || n % 20, 800, 300, 1100, 0, 0, 0.001234567891 + n % 1000 * 0.000001, 1234567 + n % 1000 * 1000,
    CASE WHEN n % 10 = 0 THEN 0 ELSE 1 END, CASE WHEN n % 10 = 0 THEN 'refused' ELSE 'completed' END, 'usage',
    CASE WHEN n % 3 = 0 THEN 'title_generation' END, 'chat-' || n / 7, true, 400, 4000, 'gen-' || n, 0
FROM generate_series($1::bigint, $2::bigint) AS n,
    LATERAL (SELECT floor(power(random(), 3) * $5)::int + n * 0 AS number) AS of_person,
    LATERAL (SELECT of_person.number, md5('person' || of_person.number) AS id) AS u,
    LATERAL (SELECT 'vendor/model-' || (u.number * 7 + floor(random() * 5)::int + n * 0) % 300 AS model) AS m
"""


FOUND: dict[str, object] = {}
"""The figures, in the order in which they were measured."""


def found(name: str, figure: object) -> None:
    """Keep a figure, and show it at once: the next may be minutes away."""
    FOUND[name] = figure
    print(f"{name}: {figure}", file=sys.stderr, flush=True)


def main() -> None:
    """Measure, print a table, write JSON."""
    server = Postgres(fsync="on")
    try:
        server.start()
        url = server.url(server.create_database())
        asyncio.run(measure_store(url))
        with tempfile.TemporaryDirectory() as folder:
            measure_gateway(url, Path(folder))
        version = server.sql("postgres", "SHOW server_version")[0][0]
    finally:
        server.remove()
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "postgresql": version, "rows": ROWS}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine, "results": FOUND}, indent=2) + "\n")
    show(machine, FOUND)


async def measure_store(url: str) -> None:
    """Fill the database, add its hours up, and write as the outbox does."""
    store = await Store.open(url, "bench")
    try:
        people = [_person(number) for number in range(PEOPLE)]
        for start in range(0, PEOPLE, BATCH):
            await store.write(people[start : start + BATCH], [])
        filling = await fill(store, url)
        started = time.perf_counter()
        hours = 0
        while done := await store.refresh_rollups(100):
            hours += done
        adding_up = time.perf_counter() - started
        plain = await asyncpg.connect(url)
        try:
            await plain.execute("ANALYZE")
        finally:
            await plain.close()
        found("filled, rows/s", round(ROWS / filling))
        found("hours added up", hours)
        found("hours added up, rows/s", round(ROWS / adding_up))
        found("written by 1 writer, rows/s", await writing(store, 1))
        found("written by 4 writers, rows/s", await writing(store, 4))
    finally:
        await store.close()


async def fill(store: Store, url: str) -> float:
    """Insert `ROWS` records, up to an hour ago; how many seconds that took."""
    now = time.time()
    # So that all months are there: one record of each day.
    await store.write([], [_record(now - day * 86_400) for day in range(DAYS + 1)])
    plain = await asyncpg.connect(url)
    started = time.perf_counter()
    try:
        until = await plain.fetchval("SELECT now() - interval '1 hour'")
        step = await plain.fetchval("SELECT $1::float * interval '1 second'", DAYS * 86_400 / ROWS)
        for first in range(0, ROWS, AT_ONCE):
            last = min(first + AT_ONCE, ROWS) - 1
            await plain.execute(FILL, first, last, until, step, float(PEOPLE))
            print(f"\r{last + 1:,} rows", end="", file=sys.stderr, flush=True)
        took = time.perf_counter() - started
        await plain.execute(
            "INSERT INTO stale_hours SELECT DISTINCT date_trunc('hour', ts, 'UTC'), 1 FROM usage_records "
            "ON CONFLICT (hour) DO NOTHING"
        )
    finally:
        print(file=sys.stderr)
        await plain.close()
    return took


async def writing(store: Store, writers: int) -> int:
    """Rows per second that so many writers get there in batches."""
    until = time.perf_counter() + WRITING_SECONDS
    written = 0

    async def write() -> None:
        nonlocal written
        while time.perf_counter() < until:
            # Not of this minute: limits by the minute are not what is measured here.
            then = time.time() - 3 * 3600
            await store.write([], [_record(then) for _ in range(BATCH)])
            written += BATCH

    started = time.perf_counter()
    await asyncio.gather(*(write() for _ in range(writers)))
    return round(written / (time.perf_counter() - started))


def measure_gateway(url: str, folder: Path) -> None:
    """Ask a running gateway, and let it build its counters, in both shapes of the ledger."""
    commands.DEADLINE = 900.0
    settings = {"DATABASE_URL": url, "ADMIN_API_KEY": ADMIN_KEY, "GATEWAY_API_KEYS": f"bench:{CONNECTION_KEY}"}
    redis = RedisServer()
    redis.start()
    try:
        gateway = Gateway.start(folder, settings | {"REDIS_URL": redis.url})
        measure_admin(gateway)
        new = _served_after(lambda: gateway.set_policy(limits=LIMITS), gateway)
        found("served after limits by day and month are new, s", new)
        found("served after FLUSHALL of Redis, s", _served_after(redis.flush, gateway))
        gateway.process.stop()
    finally:
        redis.remove()
    started = time.perf_counter()
    alone = Gateway.start(folder, settings)
    found("start without Redis, all sums from the records, s", round(time.perf_counter() - started, 1))
    alone.process.stop()


def measure_admin(gateway: Gateway) -> None:
    """Each question several times; the median and the worst in milliseconds."""
    found("load of the machine when the questions begin, 1 min", round(os.getloadavg()[0], 1))
    with httpx.Client(base_url=f"{gateway.url}/admin", headers={"x-admin-key": ADMIN_KEY}, timeout=60) as client:
        for path in questions():
            found(f"GET {path}", _timed(lambda: client.get(path)))  # noqa: B023 - called at once


def questions() -> Iterator[str]:
    """What an administrator asks, small and large."""
    now = int(time.time())
    yield "/usage?limit=100"
    yield f"/usage?limit=100&user={_person(1).id}"
    yield f"/usage?limit=100&since={now - 30 * 86_400}&until={now - 29 * 86_400}"
    yield "/usage?limit=100&model=vendor/model-7"
    yield "/usage?limit=100&status=refused"
    for kind in ("all", "user", "model", "group", "task", "connection"):
        for days in (1, 30, DAYS):
            yield f"/reports?by={kind}&since={now - days * 86_400}"
        yield f"/reports?by={kind}&since={now - DAYS * 86_400}&every=day"
        # Begins and ends amid long spans, where most has to be put together.
        yield f"/reports?by={kind}&since={now - 77 * 86_400}&until={now - 47 * 86_400}"


def show(machine: dict[str, object], results: dict[str, object]) -> None:
    """As a table, for people."""
    table = Table(title=f"{machine}")
    table.add_column("what")
    table.add_column("figure", justify="right")
    for name, figure in results.items():
        table.add_row(name, str(figure))
    Console(width=140).print(table)


def _served_after(event: Callable[[], None], gateway: Gateway) -> float:
    person = somebody()
    assert ask(gateway, person).status_code == 200
    started = time.perf_counter()
    event()
    while ask(gateway, person).status_code != 200:
        time.sleep(0.05)
    return round(time.perf_counter() - started, 2)


def _timed(ask: Callable[[], httpx.Response]) -> dict[str, float]:
    taken = []
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        answer = ask()
        taken.append((time.perf_counter() - started) * 1000)
        assert answer.status_code == 200, answer.text
    return {"median ms": round(statistics.median(taken), 1), "worst ms": round(max(taken), 1)}


def _person(number: int) -> User:
    name = f"person{number}"
    return User(
        id=hashlib.md5(name.encode(), usedforsecurity=False).hexdigest(),
        connection=f"webui-{number % 5}",
        subject=name,
        email=f"{name}@example.com",
        name=name,
        role="user",
        groups=(f"group-{number % 200}",),
        is_active=True,
        policy_id=None,
        created_at=time.time(),
        last_seen_at=time.time(),
    )


def _record(at: float) -> UsageRecord:
    facts = Facts(
        request_id=f"req-{int(at * 1000):012x}{uuid4().hex[:16]}",
        admitted_at=at,
        connection="webui-0",
        user_id=_person(0).id,
        email="person0@example.com",
        groups=("group-0",),
        policy_id="default",
        model="vendor/model-0",
    )
    return UsageRecord(
        facts, Status.COMPLETED, Source.USAGE, prompt_tokens=800, completion_tokens=300, total_tokens=1100,
        cost=Decimal("0.001234567891"), cost_nano=1_234_568,
    )  # fmt: skip


if __name__ == "__main__":
    main()
