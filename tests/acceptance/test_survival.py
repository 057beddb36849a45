"""Answers that break off, clients that leave, processes that are killed: charged all the same, once, in the end."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from decimal import Decimal

import httpx
import pytest
from books import AT_ONCE, DAY, assert_nothing_is_held, settled, until
from commands import CONNECTION_KEY, DEADLINE, Gateway, Launch, Simulator
from open_webui import MODEL, Person, plain_headers, somebody, user_turn


def stream(gateway: Gateway, person: Person, text: str, model: str = MODEL) -> AbstractContextManager[httpx.Response]:
    return httpx.stream(
        "POST",
        f"{gateway.url}/v1/chat/completions",
        headers=plain_headers(person, CONNECTION_KEY, chat_id="c"),
        json=user_turn(text, model=model, tools=[]),
        timeout=DEADLINE,
    )


def ask(gateway: Gateway, person: Person, text: str, model: str = MODEL) -> httpx.Response:
    """Ask, and read the stream to its end."""
    with stream(gateway, person, text, model) as answer:
        answer.read()
    return answer


def events_of(answer: httpx.Response) -> list[str]:
    return [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]


def leave_after(gateway: Gateway, person: Person, events: int, text: str, model: str = MODEL) -> None:
    """Ask for a stream, and hang up after so many events."""
    with stream(gateway, person, text, model) as answer:
        assert answer.status_code == 200
        lines = (line for line in answer.iter_lines() if line.startswith("data: "))
        for _ in range(events):
            assert "error" not in json.loads(next(lines).removeprefix("data: "))


def bill_of(simulator: Simulator, record: dict[str, object]) -> Decimal:
    (bill,) = [bill for bill in simulator.bills() if bill["id"] == record["generation_id"]]
    return Decimal(str(bill["total"]))


@pytest.fixture
def own(gateway: Gateway) -> Gateway:
    """A gateway with limits that nobody reaches, so that what is held can be seen."""
    gateway.set_policy(limits=[DAY, AT_ONCE])
    return gateway


@pytest.mark.parametrize("model", ["simulator/slow", "simulator/slow-runs-on"])
def test_who_leaves_after_3_events_is_charged_what_openrouter_charged(own: Gateway, simulator: Simulator, model: str):
    person = somebody()
    leave_after(own, person, 3, "Hello", model)
    (record,) = settled(own, person)
    assert record["status"] == "aborted"
    assert Decimal(record["cost"]) == bill_of(simulator, record) > 0
    assert_nothing_is_held(own, person, Decimal(record["cost"]))


@pytest.mark.parametrize(
    ("model", "text"),
    [("simulator/cuts", "Hello"), ("simulator/forgets-usage", "Hello"), (MODEL, "Hello [[cost=negative]]")],
)
def test_an_answer_that_does_not_say_its_cost_is_settled_from_the_generation(
    own: Gateway, simulator: Simulator, model: str, text: str
):
    person = somebody()
    assert ask(own, person, text, model).status_code == 200
    (record,) = settled(own, person)
    assert record["source"] == "generation"
    assert Decimal(record["cost"]) == bill_of(simulator, record) > 0
    assert_nothing_is_held(own, person, Decimal(record["cost"]))


def test_a_generation_that_openrouter_never_knows_is_settled_on_an_estimate_never_under(
    own: Gateway, simulator: Simulator
):
    person = somebody()
    leave_after(own, person, 1, "Hello [[generation-lost]] [[no-usage]] [[pace=0.05]]")
    (record,) = settled(own, person)
    assert record["source"] == "estimate"
    assert Decimal(record["cost"]) >= bill_of(simulator, record)
    assert_nothing_is_held(own, person, Decimal(record["cost"]))


def test_an_error_in_the_stream_is_one_that_open_webui_shows_and_costs_nothing(own: Gateway):
    person = somebody()
    events = events_of(ask(own, person, "Hello", "simulator/breaks"))
    last = json.loads(events[-1])
    assert last["error"]["message"]
    assert "choices" not in last
    (record,) = settled(own, person)
    assert (record["status"], record["cost"]) == ("failed", "0")
    assert_nothing_is_held(own, person, Decimal(0))


def test_code_for_the_browser_that_upstream_sends_does_not_arrive(own: Gateway):
    for marker in ("[[event]]", "[[event-escaped]]"):
        events = events_of(ask(own, somebody(), f"Hello {marker}"))
        assert events[-1] == "[DONE]"
        assert len(events) > 2
        assert not [event for event in events[:-1] if "event" in json.loads(event)]


def test_after_kill_9_in_mid_stream_the_next_start_settles_what_openrouter_charged(
    launch: Launch, simulator: Simulator
):
    person, other = somebody(), somebody()
    first = launch()
    first.set_policy(limits=[DAY, AT_ONCE])
    assert ask(first, other, "Hello").status_code == 200
    with stream(first, person, "Hello [[tokens=2000]]", "simulator/slow") as answer:
        assert next(answer.iter_lines())
        # Both were met a moment ago: what is known of them is in the journal, perhaps not in the database yet.
        first.process.kill()

    second = launch()

    for who in (person, other):
        records = settled(second, who, 1)
        assert_nothing_is_held(second, who, sum(bill_of(simulator, record) for record in records))
        assert [Decimal(record["cost"]) for record in records] == [bill_of(simulator, record) for record in records]


def test_who_is_cut_by_a_shutdown_is_told_so_before_the_first_byte_and_in_mid_stream(
    launch: Launch, simulator: Simulator
):
    first = launch(SHUTDOWN_GRACE="0.3")
    first.set_policy(limits=[DAY, AT_ONCE])
    with ThreadPoolExecutor(1) as waiting, stream(first, somebody(), "Hi [[tokens=4000]] [[pace=0.05]]") as answer:
        lines = answer.iter_lines()
        assert next(lines)
        asked = waiting.submit(ask, first, somebody(), "Hello [[wait=30]]")
        until(lambda: simulator.stats()["in_flight"] == 2)
        first.process.terminate()
        refused = asked.result()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert refused.headers["retry-after"] == "1"
        events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        assert json.loads(events[-1])["error"]["code"] == "shutting_down"
    assert first.process.wait() == 0


def test_sigterm_lets_an_answer_end_and_leaves_nothing_behind(launch: Launch, simulator: Simulator):
    person = somebody()
    first = launch()
    first.set_policy(limits=[DAY, AT_ONCE])
    with stream(first, person, "Hello [[tokens=40]] [[pace=0.02]]") as answer:
        lines = answer.iter_lines()
        assert next(lines)
        first.process.terminate()
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert first.process.wait() == 0

    second = launch()
    (record,) = second.usage(user=person.email)
    assert (record["status"], record["source"]) == ("completed", "usage")
    assert Decimal(record["cost"]) == bill_of(simulator, record) > 0
    assert_nothing_is_held(second, person, Decimal(record["cost"]))
