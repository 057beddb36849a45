"""Several processes on one port, and one Redis: to clients and administrators they are one gateway."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import httpx
import pytest
from books import AT_ONCE, DAY, assert_nothing_is_held, settled
from commands import DEADLINE, FAREGATE, Gateway, Launch, Process, Simulator
from fleet import ask, bills_of, running, stream
from open_webui import Person, plain_headers, somebody, user_turn
from redis_server import RedisServer

WORKERS = "2"


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    """A Redis for this file of tests."""
    with running(RedisServer()) as server:
        yield server


@pytest.fixture
def shared(redis: RedisServer) -> dict[str, str]:
    """The settings of processes that share limits that nobody else has."""
    redis.flush()
    return {"WORKERS": WORKERS, "REDIS_URL": redis.url}


def await_both(gateway: Gateway, person: Person) -> set[int]:
    """Ask until both workers have answered; who they are."""
    answered: set[int] = set()
    while len(answered) < int(WORKERS):
        assert ask(gateway, person).status_code == 200
        line = gateway.process.await_line(r"\[(?P<pid>\d+)\] INFO faregate\.requests: .*status=200")
        answered.add(int(line["pid"]))
    return answered


def test_each_worker_serves_and_what_all_of_them_spent_is_in_one_book(
    launch: Launch, simulator: Simulator, shared: dict[str, str]
):
    person = somebody()
    simulator.reset()
    first = launch(**shared)
    first.set_policy(limits=[DAY, AT_ONCE])
    first.process.stop()
    gateway = launch(**shared)

    await_both(gateway, person)

    bills = bills_of(simulator)
    records = settled(gateway, person, len(bills))
    assert sorted(Decimal(record["cost"]) for record in records) == bills
    assert_nothing_is_held(gateway, person, sum(bills, Decimal(0)))


def test_a_limit_is_one_for_all_workers(launch: Launch, shared: dict[str, str]):
    person, other = somebody(), somebody()
    first = launch(**shared)
    first.set_policy(limits=[{"meter": "requests", "window": "day", "amount": 20}])
    first.process.stop()
    gateway = launch(**shared)

    answers = [ask(gateway, person).status_code for _ in range(30)]

    assert answers == [200] * 20 + [429] * 10
    assert ask(gateway, other).status_code == 200


def test_after_kill_9_of_a_worker_another_takes_its_place_and_the_book_is_right(
    launch: Launch, simulator: Simulator, shared: dict[str, str]
):
    person = somebody()
    simulator.reset()
    gateway = launch(**shared)
    victim, *_ = await_both(gateway, person)

    os.kill(victim, signal.SIGKILL)
    gateway.process.await_line(rf"Worker {victim} ended with SIGKILL\. Another takes its place")
    gateway.process.await_line(r"Worker \d+ serves")

    assert victim not in await_both(gateway, person)
    bills = bills_of(simulator)
    records = settled(gateway, person, len(bills))
    assert sorted(Decimal(record["cost"]) for record in records) == bills


def test_sigterm_lets_answers_of_all_workers_end(launch: Launch, simulator: Simulator, shared: dict[str, str]):
    person = somebody()
    gateway = launch(**shared)
    await_both(gateway, person)
    with stream(gateway, person, "Hello [[tokens=40]] [[pace=0.02]]") as answer:
        lines = answer.iter_lines()
        assert next(lines)
        gateway.process.terminate()
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert gateway.process.wait() == 0


def test_the_first_start_shows_one_pair_of_keys_and_where_the_simulators_bills_are(
    tmp_path: Path, shared: dict[str, str]
):
    process = Process(
        ["serve"],
        ready=r"^  API +http://127\.0\.0\.1:(?P<port>\d+)/v1",
        folder=tmp_path,
        settings={"HOST": "127.0.0.1", "PORT": "0"} | shared,
    )
    url = f"http://127.0.0.1:{process.port}"
    bills = process.await_line(r"its bills: (\S+)")[1]
    process.await_line(r"/admin/usage")
    (key,) = set(re.findall(r"sk-fg-[\w-]+", process.output))

    headers = plain_headers(somebody(), key)
    for _ in range(10):
        body = user_turn("Hello", stream=False, tools=[])
        answer = httpx.post(f"{url}/v1/chat/completions", headers=headers, json=body, timeout=DEADLINE)
        assert answer.status_code == 200, answer.text

    assert len(httpx.get(bills).json()) == 10
    assert httpx.get(f"{url}/_simulator/bills").status_code == 404
    process.stop()
    assert f"{WORKERS} processes on this port" in process.output


def test_what_stops_one_worker_from_starting_stops_the_start_with_its_sentence(tmp_path: Path, shared: dict[str, str]):
    (tmp_path / "file").touch()
    ended = subprocess.run(
        [FAREGATE, "serve"],
        cwd=tmp_path,
        env={"HOST": "127.0.0.1", "PORT": "0", "DATABASE_URL": f"sqlite:///{tmp_path}/file/faregate.db"} | shared,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert re.fullmatch(rf"faregate: .*{re.escape(str(tmp_path))}/file.*\n", ended.stderr), ended.stderr
