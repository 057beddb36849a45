"""Several gateways, one Redis, one database: one set of limits, whatever happens to any one of them."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path

import httpx
import pytest
from books import AT_ONCE, DAY, assert_nothing_is_held, settled, until
from commands import CONNECTION_KEY, DEADLINE, Gateway, Launch, Simulator
from fleet import ask, bills_of, running, sharing, start_all, stream
from open_webui import MODEL, Person, plain_headers, somebody, user_turn
from postgres import Postgres
from redis_server import RedisServer

SOON = 2.0
"""Seconds after which what was changed on one node holds on all, and service is normal again after an outage."""

Nodes = Callable[..., list[Gateway]]


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A Redis for one test: it may be stopped, emptied and killed."""
    with running(RedisServer()) as server:
        yield server


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL for one test."""
    with running(Postgres()) as server:
        yield server


@pytest.fixture
def nodes(launch: Launch, redis: RedisServer, simulator: Simulator, tmp_path: Path) -> Nodes:
    """Starts so many gateways that share all they have; the first of them gets `limits`."""
    simulator.reset()

    def start(count: int, limits: Sequence[dict[str, object]] = (), **settings: str) -> list[Gateway]:
        shared = sharing(redis.url, tmp_path) | settings
        return start_all(lambda number: launch(f"node{number}", **shared), count, limits=list(limits))

    return start


async def ask_at_once(
    gateways: Sequence[Gateway], people: Sequence[Person], text: str, *, again: bool = False, **more: object
) -> list[httpx.Response]:
    """One question of each of `people`, all at once, spread over the gateways. With `again`, until it is answered:
    those who were refused ask again a few at a time."""
    few = asyncio.Semaphore(12)
    limits = httpx.Limits(max_connections=len(people), max_keepalive_connections=0)
    # Who asks again does so on other connections: httpx may close one that was idle for some seconds at the very moment
    # in which it gives it to somebody.
    async with (
        httpx.AsyncClient(timeout=DEADLINE, limits=limits) as client,
        httpx.AsyncClient(timeout=DEADLINE) as later,
    ):

        async def one(number: int, person: Person) -> httpx.Response:
            url = f"{gateways[number % len(gateways)].url}/v1/chat/completions"
            headers, body = plain_headers(person, CONNECTION_KEY), user_turn(text, **{"tools": []} | more)
            answer = await client.post(url, headers=headers, json=body)
            while again and answer.status_code == 429:
                async with few:
                    answer = await later.post(url, headers=headers, json=body)
            return answer

        return await asyncio.gather(*(one(number, person) for number, person in enumerate(people)))


def within(seconds: float, condition: Callable[[], object]) -> None:
    """It becomes so, and no later than this."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not come to that within {seconds} s"
        time.sleep(0.02)


def readiness(gateway: Gateway) -> int:
    return httpx.get(f"{gateway.url}/readyz").status_code


async def test_of_500_requests_on_three_nodes_never_more_than_10_are_answered_at_once(
    nodes: Nodes, simulator: Simulator
):
    three = nodes(3, [{"meter": "concurrent", "amount": 10}])
    person = somebody()

    answers = await ask_at_once(three, [person] * 500, "Hello [[wait=0.05]]", again=True, stream=False)

    assert Counter(answer.status_code for answer in answers) == {200: 500}
    assert simulator.stats() == {"requests": 500, "in_flight": 0, "max_in_flight": 10}
    (quota,) = three[2].quota(person.email)
    assert (quota["used"], quota["held"]) == (0, 0)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_of_200_requests_on_three_nodes_those_are_answered_that_a_budget_for_10_pays_for(
    nodes: Nodes, simulator: Simulator, database: str, request: pytest.FixtureRequest
):
    where = {}
    if database == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        where = {"DATABASE_URL": server.url(server.create_database())}
    # Each of these holds $1.024 for its 256 tokens, and $1.4 for the bound of its prompt, which will cost less.
    limit = Decimal(25)
    three = nodes(3, [{"meter": "usd", "window": "day", "amount": str(limit)}], **where)
    person = somebody()

    answers = await ask_at_once(
        three,
        [person] * 200,
        "Hello [[tokens=256]] [[wait=2]]",
        model="simulator/costly",
        stream=False,
        max_tokens=256,
    )

    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) == {200, 429}
    assert simulator.stats()["max_in_flight"] == 10
    until(lambda: len(three[1].usage(user=person.email, limit=1000)) == 200)
    records = three[1].usage(user=person.email, limit=1000)
    spent = sum(Decimal(record["cost"]) for record in records)
    assert spent == sum(bills_of(simulator))
    assert 0 < spent <= limit
    (quota,) = three[2].quota(person.email)
    assert (Decimal(quota["used"]), Decimal(quota["held"])) == (spent, 0)


async def test_50_first_requests_of_somebody_on_three_nodes_make_one_person(nodes: Nodes):
    three = nodes(3, [{"meter": "requests", "window": "day", "amount": 20}])
    person = somebody()

    answers = await ask_at_once(three, [person] * 50, "Hello", stream=False)

    assert Counter(answer.status_code for answer in answers) == {200: 20, 429: 30}
    for gateway in three:
        until(lambda gateway=gateway: len(gateway.usage(user=person.email)) == 50)
        (user,) = gateway.admin("GET", "/users").json()
        assert (user["subject"], user["effective_policy_id"]) == (person.id, "default")


def test_what_is_changed_on_one_node_holds_on_the_other_within_2_seconds(nodes: Nodes):
    one, other = nodes(2)
    person, leaver = somebody(), somebody()
    assert [ask(one, who).status_code for who in (person, leaver, person, person)] == [200] * 4

    # Added in mid-window: what was spent before counts.
    one.set_policy(limits=[{"meter": "requests", "window": "day", "amount": 3}])
    within(SOON, lambda: ask(other, person).status_code == 429)
    (quota,) = other.quota(person.email)
    # Else the questions above would have used it up by themselves. The records of another node are written soon.
    assert quota["used"] >= 3
    until(lambda: [r["status"] for r in one.usage(user=person.email)].count("completed") == quota["used"])
    one.set_policy(limits=[{"meter": "requests", "window": "day", "amount": 100}])
    within(SOON, lambda: ask(other, person).status_code == 200)
    one.admin("PATCH", f"/users/{one.user(leaver.email)['id']}", json={"is_active": False})
    within(SOON, lambda: ask(other, leaver).status_code == 403)


def test_what_a_killed_node_had_in_flight_is_settled_by_the_others(nodes: Nodes, simulator: Simulator):
    one, other = nodes(2, [DAY, AT_ONCE])
    person = somebody()
    with (
        stream(one, person, "Hello [[tokens=2000]] [[pace=0.05]]") as first,
        stream(one, person, "Hello [[tokens=2000]] [[pace=0.05]] [[provider=Groq]]") as second,
    ):
        assert next(first.iter_lines())
        assert next(second.iter_lines())
        one.process.kill()

    # The parallel slots stay taken until its lease is over, then all is settled.
    records = settled(other, person, 2)

    assert sorted(Decimal(record["cost"]) for record in records) == bills_of(simulator)
    assert_nothing_is_held(other, person, sum(bills_of(simulator)))


def test_while_redis_is_away_nobody_is_served_and_who_is_being_served_notices_nothing(
    nodes: Nodes, redis: RedisServer, simulator: Simulator
):
    one, other = nodes(2, [DAY, AT_ONCE])
    person = somebody()
    with stream(one, person, "Hello [[tokens=40]] [[pace=0.02]]") as answer:
        lines = answer.iter_lines()
        assert next(lines)
        redis.pause()
        events = [line for line in lines if line]
    assert events[-1] == "data: [DONE]"

    for gateway in (one, other):
        until(lambda gateway=gateway: ask(gateway, person) and readiness(gateway) == 503)
        refusal = ask(gateway, person)
        assert refusal.status_code == 503
        assert refusal.headers["x-faregate-ledger"] == "away"
        assert int(refusal.headers["retry-after"]) > 0
        assert refusal.json()["error"]["code"] == "ledger_unavailable"
    redis.resume()

    for gateway in (one, other):
        within(SOON, lambda gateway=gateway: ask(gateway, person).status_code == 200)
        assert readiness(gateway) == 200
    until(lambda: sum(r["status"] == "completed" for r in other.usage(user=person.email)) == len(simulator.bills()))
    assert_nothing_is_held(other, person, sum(bills_of(simulator)))


def test_with_the_rule_open_requests_are_served_while_redis_is_away_and_charged_when_it_is_back(
    nodes: Nodes, redis: RedisServer, simulator: Simulator
):
    one, other = nodes(2, [DAY, AT_ONCE], LEDGER_ON_OUTAGE="open")
    person = somebody()
    assert ask(one, person).status_code == 200
    redis.pause()
    for gateway in (one, other, one):
        answer = ask(gateway, person)
        assert answer.status_code == 200
        assert answer.headers["x-faregate-ledger"] == "unchecked"
        assert readiness(gateway) == 200
    redis.resume()

    records = settled(other, person, 4)

    assert sorted(Decimal(record["cost"]) for record in records) == bills_of(simulator)
    until(lambda: Decimal(one.quota(person.email)[0]["used"]) == sum(bills_of(simulator)))
    assert_nothing_is_held(other, person, sum(bills_of(simulator)))


@pytest.mark.parametrize("loss", [RedisServer.flush, RedisServer.restart], ids=["flushed", "killed and empty"])
async def test_redis_loses_everything_under_load_and_the_counters_are_the_records_again(
    nodes: Nodes, redis: RedisServer, simulator: Simulator, loss: Callable[[RedisServer], None]
):
    three = nodes(3, [DAY, {"meter": "concurrent", "amount": 30}])
    person = somebody()
    asking = asyncio.create_task(
        ask_at_once(three, [person] * 60, "Hello [[tokens=10]] [[pace=0.05]]", again=True, model=MODEL)
    )
    # Some have ended, some are under way, some are yet to come.
    while simulator.stats()["requests"] < 40:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await asyncio.to_thread(loss, redis)
    answers = await asking

    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) <= {200, 503}, "away for a moment, or served; never anything else"
    for gateway in three:
        within(SOON, lambda gateway=gateway: ask(gateway, somebody()).status_code == 200)
    bills = bills_of(simulator)[:]
    until(lambda: len([r for r in three[0].usage(limit=1000) if r["status"] == "completed"]) == len(bills))
    records = [r for r in three[0].usage(user=person.email, limit=1000) if r["status"] == "completed"]
    assert len(records) == statuses[200]
    spent = sum(Decimal(record["cost"]) for record in records)
    assert_nothing_is_held(three[1], person, spent)
    assert sorted(Decimal(r["cost"]) for r in three[0].usage(limit=1000) if r["status"] == "completed") == bills
