"""Several keys to OpenRouter, and too little room there: who is answered, what it costs, who hears of it."""

import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import httpx
import pytest
from books import AT_ONCE, DAY, assert_nothing_is_held, settled, until
from commands import CONNECTION_KEY, DEADLINE, FAREGATE, Gateway, Launch, Simulator
from open_webui import Person, plain_headers, somebody, user_turn

MAIN, SPARE = "sk-or-v1-tests-main", "sk-or-v1-tests-spare"
LONG = "60"
"""Seconds to wait in line that no test takes."""


def ask(gateway: Gateway, person: Person, text: str = "Hello", timeout: float = DEADLINE) -> httpx.Response:
    return httpx.post(
        f"{gateway.url}/v1/chat/completions",
        headers=plain_headers(person, CONNECTION_KEY),
        json=user_turn(text, stream=False, tools=[]),
        timeout=timeout,
    )


def asked_with(simulator: Simulator) -> list[str]:
    """The keys of all chat requests that came, in their order."""
    return [str(request["headers"]["authorization"]).removeprefix("Bearer ") for request in simulator.last()]


def metric(gateway: Gateway, name: str) -> dict[str, float]:
    """The samples of one metric, by their label `key`, "" without one."""
    found = re.findall(rf'^{name}{{(?:key="([^"]*)",)?[^}}]*}} (\S+)$', httpx.get(f"{gateway.url}/metrics").text, re.M)
    return {key: float(value) for key, value in found}


def health(gateway: Gateway) -> tuple[str, str]:
    """The state, and what is said of the keys."""
    body = httpx.get(f"{gateway.url}/readyz").raise_for_status().json()
    return body["status"], body["checks"]["upstream_keys"]["detail"]


@pytest.fixture(autouse=True)
def fresh(simulator: Simulator) -> None:
    """A simulator whose keys are all well, and that has seen nothing."""
    simulator.reset()


@pytest.fixture
def gateway(launch: Launch) -> Gateway:
    """A gateway with two keys of the same weight."""
    running = launch(OPENROUTER_API_KEY="", OPENROUTER_API_KEYS=f"main={MAIN},spare={SPARE}")
    running.set_policy(limits=[DAY, AT_ONCE])
    return running


@pytest.fixture
def patient(launch: Launch) -> Gateway:
    """A gateway with one key in which people wait as long as it takes."""
    running = launch(OPENROUTER_API_KEY=MAIN, UPSTREAM_QUEUE_SECONDS=LONG, SHUTDOWN_GRACE="0.2")
    running.set_policy(limits=[DAY])
    return running


@pytest.fixture
def people() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def test_requests_are_spread_by_weight(launch: Launch, simulator: Simulator):
    gateway = launch(OPENROUTER_API_KEY="", OPENROUTER_API_KEYS=f"{MAIN}@3,{SPARE}")
    for _ in range(8):
        assert ask(gateway, somebody()).status_code == 200
    assert Counter(asked_with(simulator)) == {MAIN: 6, SPARE: 2}


@pytest.mark.parametrize("error", ["401", "402-credits", "403-key"])
def test_what_one_key_may_not_another_does_and_nobody_but_the_administrator_hears_of_it(
    gateway: Gateway, simulator: Simulator, error: str
):
    simulator.set_key(MAIN, error=error)
    person = somebody()
    for _ in range(4):
        assert ask(gateway, person).status_code == 200

    # Once on each key, then on the good one alone.
    assert asked_with(simulator) == [MAIN, SPARE, SPARE, SPARE, SPARE]
    records = settled(gateway, person, 4)
    spent = sum(Decimal(str(bill["total"])) for bill in simulator.bills())
    assert {record["status"] for record in records} == {"completed"}
    assert sum(Decimal(str(record["cost"])) for record in records) == spent > 0
    assert_nothing_is_held(gateway, person, spent)

    assert metric(gateway, "faregate_upstream_key_up") == {"main": 0, "spare": 1}
    assert health(gateway) == ("degraded", f"OpenRouter does not take main (HTTP {error[:3]})")
    alarms = [line for line in gateway.process.output.splitlines() if " ERROR faregate.upstream: " in line]
    assert len(alarms) == 1
    assert "the key main" in alarms[0]
    assert MAIN not in gateway.process.output
    assert SPARE not in gateway.process.output


def test_a_key_that_is_asked_to_wait_rests_and_that_is_no_alarm(gateway: Gateway, simulator: Simulator):
    simulator.set_key(MAIN, error="429-retry-after")
    assert ask(gateway, somebody()).status_code == 200
    assert asked_with(simulator) == [MAIN, SPARE]
    assert metric(gateway, "faregate_upstream_key_up") == {"main": 0, "spare": 1}
    assert health(gateway)[0] == "ready"
    assert " ERROR faregate.upstream: " not in gateway.process.output


def test_where_no_key_is_taken_the_answer_is_what_it_is_with_one_and_it_ends_when_openrouter_relents(
    gateway: Gateway, simulator: Simulator
):
    person = somebody()
    for key in (MAIN, SPARE):
        simulator.set_key(key, error="402-credits")
    answers = [ask(gateway, person) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [402] * 3
    assert {answer.json()["error"]["code"] for answer in answers} == {"upstream_account"}
    # On both, and when both are out on the one whose time comes first.
    assert asked_with(simulator)[:3] == [MAIN, SPARE, MAIN]
    assert len(asked_with(simulator)) == 4
    assert {(record["status"], record["cost"]) for record in gateway.usage(user=person.email)} == {("failed", "0")}
    assert_nothing_is_held(gateway, person, Decimal(0))
    assert gateway.process.output.count(" ERROR faregate.upstream: ") == 2

    for key in (MAIN, SPARE):
        simulator.set_key(key)
    assert ask(gateway, person).status_code == 200
    assert sum(metric(gateway, "faregate_upstream_key_up").values()) == 1


def test_what_is_not_about_the_key_is_not_tried_on_another(gateway: Gateway, simulator: Simulator):
    for count, error in enumerate(("402-weight", "403-moderation", "429", "500", "503"), start=1):
        ask(gateway, somebody(), f"Hello [[error={error}]]")
        assert len(asked_with(simulator)) == count
    assert metric(gateway, "faregate_upstream_key_up") == {"main": 1, "spare": 1}


def test_what_an_answer_cost_is_asked_for_with_a_key_that_still_works(gateway: Gateway, simulator: Simulator):
    person = somebody()
    assert ask(gateway, person, "Hello [[no-usage]]").status_code == 200
    simulator.set_key(MAIN, error="401")
    (record,) = settled(gateway, person)
    (bill,) = simulator.bills()
    assert (record["source"], Decimal(str(record["cost"]))) == ("generation", Decimal(str(bill["total"])))


def test_who_finds_no_room_waits_for_it_and_a_hundred_requests_of_one_do_not_delay_another(
    patient: Gateway, simulator: Simulator, people: ThreadPoolExecutor
):
    simulator.set_key(MAIN, in_flight=0)
    many, one = somebody(), somebody()
    answers: list[Future[httpx.Response]] = [people.submit(ask, patient, many) for _ in range(8)]
    until(lambda: metric(patient, "faregate_holds")[""] == 8)
    answers.append(people.submit(ask, patient, one))
    until(lambda: metric(patient, "faregate_holds")[""] == 9)
    simulator.set_key(MAIN)

    assert [answer.result().status_code for answer in answers] == [200] * 9
    bills = simulator.bills()
    (alone,) = [user for user, count in Counter(bill["user"] for bill in bills).items() if count == 1]
    assert [bill["user"] for bill in bills].index(alone) <= 2
    for person, count in ((many, 8), (one, 1)):
        assert {record["status"] for record in settled(patient, person, count)} == {"completed"}
    assert metric(patient, "faregate_upstream_key_up") == {"default": 1}


def test_who_leaves_while_waiting_is_out_of_the_line_and_holds_nothing(patient: Gateway, simulator: Simulator):
    simulator.set_key(MAIN, in_flight=0, retry_after=30)
    person = somebody()
    with pytest.raises(httpx.ReadTimeout):
        ask(patient, person, timeout=0.3)
    until(lambda: patient.usage(user=person.email))
    (record,) = patient.usage(user=person.email)
    assert (record["status"], record["cost"]) == ("aborted", "0")
    assert metric(patient, "faregate_holds") == {"": 0}
    assert len(asked_with(simulator)) == 1


def test_who_is_cut_by_a_shutdown_while_waiting_pays_nothing(
    patient: Gateway, simulator: Simulator, launch: Launch, people: ThreadPoolExecutor
):
    simulator.set_key(MAIN, in_flight=0, retry_after=30)
    person = somebody()
    answer = people.submit(ask, patient, person)
    until(lambda: len(asked_with(simulator)) == 1)
    patient.process.stop()
    assert answer.result().status_code == 503
    (record,) = settled(launch(OPENROUTER_API_KEY=MAIN), person)
    assert (record["status"], record["cost"]) == ("aborted", "0")


@pytest.mark.parametrize("retry_after", [0, 30])
def test_where_no_room_comes_in_time_it_is_503_with_retry_after(launch: Launch, simulator: Simulator, retry_after: int):
    gateway = launch(OPENROUTER_API_KEY=MAIN, UPSTREAM_QUEUE_SECONDS="1")
    gateway.set_policy(limits=[DAY, AT_ONCE])
    simulator.set_key(MAIN, in_flight=0, retry_after=retry_after)
    person = somebody()
    answer = ask(gateway, person)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "upstream_busy")
    assert int(answer.headers["retry-after"]) in ((1,) if retry_after == 0 else (29, 30))
    (record,) = gateway.usage(user=person.email)
    assert (record["status"], record["cost"]) == ("failed", "0")
    assert_nothing_is_held(gateway, person, Decimal(0))
    # Again and again while there is time; not at all where it is known to be in vain.
    assert (len(asked_with(simulator)) > 1) == (retry_after == 0)


def test_faregate_check_looks_at_every_key(simulator: Simulator, tmp_path: Path):
    simulator.set_key(SPARE, error="401")
    ended = subprocess.run(
        [FAREGATE, "check"],
        cwd=tmp_path,
        env={
            "PATH": os.environ["PATH"],
            "DATA_DIR": str(tmp_path / "data"),
            "OPENROUTER_API_KEYS": f"main={MAIN},spare={SPARE}",
            "OPENROUTER_BASE_URL": f"{simulator.url}/api/v1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "upstream accepts the key main" in ended.stdout
    assert "upstream refuses the key spare (HTTP 401)" in ended.stdout
    assert MAIN not in ended.stdout + ended.stderr
