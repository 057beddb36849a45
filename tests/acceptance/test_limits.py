"""Limits, from the outside: never over, never a false no, and the person reads why."""

import asyncio
import re
from collections import Counter
from decimal import Decimal

import httpx
import pytest
from commands import CONNECTION_KEY, DEADLINE, Gateway, Simulator
from open_webui import MODEL, Person, plain_headers, somebody, user_turn


def ask(gateway: Gateway, person: Person, text: str = "Hello", **more: object) -> httpx.Response:
    return httpx.post(
        f"{gateway.url}/v1/chat/completions",
        headers=plain_headers(person, CONNECTION_KEY),
        json=user_turn(text, **{"stream": False, "tools": []} | more),
        timeout=DEADLINE,
    )


async def ask_at_once(gateway: Gateway, person: Person, times: int, text: str, **more: object) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=times)
    async with httpx.AsyncClient(timeout=DEADLINE, limits=limits, base_url=gateway.url) as client:
        headers, body = plain_headers(person, CONNECTION_KEY), user_turn(text, **{"tools": []} | more)
        asking = [client.post("/v1/chat/completions", headers=headers, json=body) for _ in range(times)]
        return await asyncio.gather(*asking)


@pytest.fixture
def own(gateway: Gateway) -> Gateway:
    """A gateway without limits, until the test says which."""
    gateway.set_policy()
    return gateway


async def test_of_200_requests_at_once_with_room_for_exactly_10_ten_are_answered(own: Gateway, simulator: Simulator):
    simulator.reset()
    person = somebody()
    own.set_policy(limits=[{"meter": "requests", "window": "day", "amount": 10}])

    answers = await ask_at_once(own, person, 200, "Hello [[pace=0.01]]")

    assert Counter(answer.status_code for answer in answers) == {200: 10, 429: 190}
    for refusal in answers:
        if refusal.status_code == 429:
            message = refusal.json()["error"]["message"]
            assert message.startswith("Your daily limit of 10 requests is used up: 10 were made. It resets on ")
    records = own.usage(user=person.email, limit=1000)
    assert Counter(record["status"] for record in records) == {"completed": 10, "refused": 190}
    bills = sum(Decimal(bill["total"]) for bill in simulator.bills())
    assert sum(Decimal(record["cost"]) for record in records) == bills > 0
    (quota,) = own.quota(person.email)
    assert (quota["used"], quota["held"], quota["remaining"]) == (10, 0, 0)
    assert len([user for user in own.admin("GET", "/users").json() if user["subject"] == person.id]) == 1


async def test_dollars_are_never_exceeded_however_many_ask_at_once(own: Gateway):
    person = somebody()
    own.set_policy(
        limits=[
            {"meter": "usd", "window": "day", "amount": "20"},
            {"meter": "tokens", "window": "total", "amount": 10**6},
        ]
    )
    answers = await ask_at_once(own, person, 200, "Hello [[tokens=50]] [[pace=0.01]]", model="simulator/costly")

    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) == {200, 429}
    records = own.usage(user=person.email, limit=1000)
    completed = [record for record in records if record["status"] == "completed"]
    assert len(completed) == statuses[200]
    spent = sum(Decimal(record["cost"]) for record in completed)
    tokens = sum(record["total_tokens"] for record in completed)
    quota = {entry["meter"]: entry for entry in own.quota(person.email)}
    assert Decimal(quota["usd"]["used"]) == spent <= 20
    assert Decimal(quota["usd"]["held"]) == 0
    assert (quota["tokens"]["used"], quota["tokens"]["held"]) == (tokens, 0)


def test_a_missing_max_tokens_is_fitted_to_what_is_left(own: Gateway, simulator: Simulator):
    own.set_policy(limits=[{"meter": "usd", "window": "day", "amount": "0.30"}])
    assert ask(own, somebody(), model="simulator/costly").status_code == 429, (
        "a cap of 256 would cost more than a dollar"
    )
    own.set_policy(limits=[{"meter": "usd", "window": "day", "amount": "6"}])
    assert ask(own, somebody(), "Hi", model="simulator/costly").status_code == 200
    cap = simulator.last()[-1]["body"]["max_tokens"]
    assert 256 <= cap < 3 / 0.004, "what half of six dollars pays for, at $4,000 per million"


def test_a_rate_limit_says_so_to_people_and_to_programs(own: Gateway):
    person = somebody()
    own.set_policy(limits=[{"meter": "requests", "window": "minute", "amount": 2}])
    assert [ask(own, person).status_code for _ in range(3)] == [200, 200, 429]
    refusal = ask(own, person)
    error = refusal.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("rate_limit_exceeded", "rate_limit_exceeded", None)
    assert error["message"].startswith(
        "Your limit of 2 requests a minute is used up: 2 were made in the last minute. There is room again on "
    )
    assert 1 <= int(refusal.headers["retry-after"]) <= 61
    assert re.fullmatch(r'"[\w-]+";q=2;qu="requests";w=60', refusal.headers["ratelimit-policy"])
    assert re.fullmatch(r'"[\w-]+";r=0;t=\d+', refusal.headers["ratelimit"])


def test_a_limit_that_is_added_in_mid_window_counts_what_was_spent_before(own: Gateway):
    person = somebody()
    assert [ask(own, person).status_code for _ in range(3)] == [200, 200, 200]
    own.set_policy(limits=[{"meter": "requests", "window": "day", "amount": 4}])
    assert [ask(own, person).status_code for _ in range(2)] == [200, 429]


def test_a_group_shares_its_pool_and_its_policy_comes_before_the_default(own: Gateway):
    own.set_policy("group", limits=[{"meter": "requests", "window": "month", "amount": 2, "scope": "group"}])
    own.set_policy("default", models={"deny": ["*"]})
    own.admin("POST", "/group-policies", json={"group_name": "students", "policy_id": "group", "priority": 1})
    one, other, stranger = somebody("students"), somebody("students"), somebody("staff")
    assert [ask(own, person).status_code for person in (one, other, one)] == [200, 200, 429]
    assert ask(own, stranger).status_code == 403
    assert own.user(one.email)["effective_policy_id"] == "group"


def test_a_model_that_is_not_allowed_is_refused_under_every_name(own: Gateway):
    person = somebody()
    own.set_policy(name="Student", models={"allow": ["openai/*"], "deny": ["*:online"]})
    assert ask(own, person, model=MODEL).status_code == 200
    for body in (
        {"model": "anthropic/claude-opus-4.1"},
        {"model": "OpenAI/gpt-4o-mini:online"},
        {"model": MODEL, "models": ["anthropic/claude-opus-4.1"]},
    ):
        answer = ask(own, person, **body)
        assert answer.status_code == 403, body
        assert "is not allowed by your policy" in answer.json()["error"]["message"]


def test_a_model_without_a_price_is_refused_by_name(own: Gateway):
    answer = ask(own, somebody(), model="acme/unheard-of")
    assert answer.status_code == 404
    assert "acme/unheard-of" in answer.json()["error"]["message"]


async def test_parallel_requests_are_limited_and_their_slots_come_back(own: Gateway):
    person = somebody()
    own.set_policy(limits=[{"meter": "concurrent", "amount": 3}])
    answers = await ask_at_once(own, person, 8, "Hello [[tokens=20]] [[pace=0.1]]")
    assert Counter(answer.status_code for answer in answers) == {200: 3, 429: 5}
    assert ask(own, person).status_code == 200


def test_shadow_refuses_nothing_and_notes_what_it_would_have(own: Gateway):
    person = somebody()
    own.set_policy(limits=[{"meter": "requests", "window": "day", "amount": 1}], enforcement="shadow")
    assert [ask(own, person).status_code for _ in range(2)] == [200, 200]
    latest = own.usage(user=person.email)[0]
    assert "shadow: would refuse by user/requests/day" in latest["rules"]
