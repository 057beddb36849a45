"""Processes that share a port: all of them serve, the dead are replaced, and at the end nothing is left running."""

import asyncio
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from faregate.keys import ADMIN, CONNECTION, FILE, Keys, load_keys
from faregate.server import Server, listen, reserve
from faregate.settings import Settings
from faregate.workers import MOST_PAUSE_SECONDS, Link, Supervisor, WorkerFailed, pause_after, run_workers

WORKERS = 3
DEADLINE = 30
LONG = 600
"""Seconds of grace that no test waits for."""


@pytest.fixture(autouse=True)
def workers_find_this_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


# --- what workers of these tests do ---


def serves(port: int, link: Link) -> None:
    """Serve `says_pid` on a shared port until the order to stop."""
    asyncio.run(_serve(port, link))


async def _serve(port: int, link: Link) -> None:
    stopping = asyncio.Event()
    server = Server(says_pid, listen("127.0.0.1", port, shared=True), LONG)
    link.obey(stopping.set, server.hurry)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await server.start()
    link.serving(os.getpid())
    await stopping.wait()
    await server.stop()


async def says_pid(scope: dict[str, Any], receive: Callable, send: Callable) -> None:
    """Begin to answer at once; tell who answers when the request is whole."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"I am ", "more_body": True})
    while (message := await receive()).get("more_body"):
        pass
    assert message["type"] == "http.request"
    await send({"type": "http.response.body", "body": b"worker %d." % os.getpid(), "more_body": False})


def dies_when_it_serves(_: None, link: Link) -> None:
    link.serving(os.getpid())
    sys.exit(3)


def dies_at_once(_: None, link: Link) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def one_fails(folder: Path, link: Link) -> None:
    """The first that comes here cannot start; the others leave their mark when they are told to stop."""
    try:
        (folder / "first").touch(exist_ok=False)
    except FileExistsError:
        asyncio.run(_wait_for_the_end(link))
        (folder / f"stopped-{os.getpid()}").touch()
    else:
        link.failed("DATABASE_URL should be a database that answers: it does not.")
        sys.exit(2)


def only_the_second_fails(folder: Path, link: Link) -> None:
    number = len(list(folder.iterdir()))
    (folder / str(number)).touch()
    if number == 1:
        link.failed("The database is away.")
        sys.exit(2)
    link.serving(number)


def never_serves(_: None, link: Link) -> None:
    asyncio.run(_wait_for_the_end(link))


async def _wait_for_the_end(link: Link) -> None:
    told = asyncio.Event()
    link.obey(told.set, told.set)
    await told.wait()


# --- a supervisor that is a process of its own ---


def supervise() -> None:
    """What such a process does."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    sock = reserve("127.0.0.1", 0)
    port = sock.getsockname()[1]
    asyncio.run(run_workers(serves, port, WORKERS, lambda pids: print(f"on {port}: {sorted(pids)}", flush=True)))


class Supervised:
    """It, and the port that its workers share."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def start(self) -> None:
        found = await self.line(r"on (\d+): \[(.*)\]")
        self.port = int(found[1])
        self.pids = {int(pid) for pid in found[2].split(",")}

    async def line(self, pattern: str) -> re.Match[str]:
        """The first match in what it writes from now on."""
        assert self.process.stdout is not None
        written = ""
        while line := (await self.process.stdout.readline()).decode():
            if found := re.search(pattern, line):
                return found
            written += line
        raise AssertionError(f"It ended without what matches {pattern}:\n{written}")

    async def all_gone(self) -> None:
        """Every one of them has its output: at its end the last of them is gone."""
        assert self.process.stdout is not None
        await self.process.stdout.read()

    async def who(self) -> int:
        """The worker that takes a new connection."""
        request = await Request.begin(self.port)
        return await request.finish()

    async def who_answers(self, number: int) -> set[int]:
        """So many different workers."""
        found: set[int] = set()
        while len(found) < number:
            found.add(await self.who())
        return found


class Request:
    """A request that stays half sent until it is finished."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def begin(cls, port: int) -> "Request":
        request = cls(*await asyncio.open_connection("127.0.0.1", port))
        request._writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhe")
        await request._reader.readuntil(b"I am ")
        return request

    async def finish(self) -> int:
        """Who answered."""
        self._writer.write(b"llo")
        found = re.search(rb"worker (\d+)\.", await self.rest())
        assert found, "the answer was cut"
        return int(found[1])

    async def rest(self) -> bytes:
        try:
            return await self._reader.read()
        finally:
            self._writer.close()


@asynccontextmanager
async def supervised() -> AsyncIterator[Supervised]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import test_workers; test_workers.supervise()",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    running = Supervised(process)
    try:
        async with asyncio.timeout(DEADLINE):
            await running.start()
            yield running
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_all_workers_serve_on_the_one_port():
    async with supervised() as running:
        assert len(running.pids) == WORKERS
        assert running.process.pid not in running.pids
        assert await running.who_answers(WORKERS) == running.pids


async def test_a_worker_that_is_killed_is_replaced_and_the_others_go_on_meanwhile():
    async with supervised() as running:
        victim = min(running.pids)
        os.kill(victim, signal.SIGKILL)
        await running.line(rf"^Worker {victim} ended with SIGKILL\. Another takes its place\.")
        assert await running.who_answers(WORKERS - 1) >= running.pids - {victim}
        new = int((await running.line(r"^Worker (\d+) serves"))[1])
        assert await running.who_answers(WORKERS) == running.pids - {victim} | {new}


async def test_at_sigterm_what_runs_comes_to_its_end_and_then_all_are_gone():
    async with supervised() as running:
        requests = [await Request.begin(running.port) for _ in range(10)]
        running.process.terminate()
        await running.line("SIGTERM: no new requests")
        assert {await request.finish() for request in requests} <= running.pids
        await running.all_gone()
        assert await running.process.wait() == 0


@pytest.mark.parametrize("way", ["a terminal's Ctrl-C", "a service manager's SIGTERM to each process"])
async def test_a_signal_to_all_of_them_is_one_order_and_cuts_nothing(way: str):
    async with supervised() as running:
        request = await Request.begin(running.port)
        if way == "a terminal's Ctrl-C":
            os.killpg(running.process.pid, signal.SIGINT)
        else:
            for pid in (running.process.pid, *running.pids):
                os.kill(pid, signal.SIGTERM)
        await running.line("no new requests")
        assert await request.finish() in running.pids
        await running.all_gone()
        assert await running.process.wait() == 0


async def test_at_the_second_sigterm_what_still_runs_is_cut():
    async with supervised() as running:
        request = await Request.begin(running.port)
        running.process.terminate()
        await running.line("SIGTERM: no new requests")
        running.process.terminate()
        assert b"worker" not in await request.rest()
        await running.all_gone()
        assert await running.process.wait() == 0


async def test_workers_whose_supervisor_is_killed_finish_what_runs_and_leave():
    async with supervised() as running:
        request = await Request.begin(running.port)
        running.process.kill()
        await running.line("The supervisor is gone")
        assert await request.finish() in running.pids
        await running.all_gone()


# --- starts that fail, and workers that die again and again ---


async def run(supervisor: Supervisor) -> list[Any]:
    """The news of the first start."""
    news: list[Any] = []
    async with asyncio.timeout(DEADLINE):
        await supervisor.run(news.extend)
    return news


async def test_a_worker_that_cannot_start_stops_the_start_with_its_sentence(tmp_path: Path):
    with pytest.raises(WorkerFailed, match=r"^DATABASE_URL should be a database that answers: it does not\.$"):
        await run(Supervisor(one_fails, tmp_path, WORKERS))
    assert len([name for name in os.listdir(tmp_path) if name.startswith("stopped-")]) == WORKERS - 1


async def test_a_worker_that_dies_before_it_serves_stops_the_start_and_how_it_died_is_said():
    with pytest.raises(WorkerFailed, match=r"^Worker \d+ ended with SIGKILL before it served\.$"):
        await run(Supervisor(dies_at_once, None, 1))


async def test_a_start_can_be_stopped_before_anybody_serves():
    supervisor = Supervisor(never_serves, None, 2)
    asyncio.get_running_loop().call_soon(supervisor.stop)
    assert await run(supervisor) == []


async def test_the_place_of_one_that_could_not_start_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    async def pause(_: float) -> None:
        if len(os.listdir(tmp_path)) == 3:
            supervisor.stop()

    supervisor = Supervisor(only_the_second_fails, tmp_path, 1, pause=pause)
    assert await run(supervisor) == [0]
    assert "could not start: The database is away. Another takes its place" in caplog.text


@pytest.mark.parametrize(
    ("life", "expected"), [(0.1, [0, 1, 2, 4]), (3600, [0, 0, 0, 0])], ids=["at its start", "after a good life"]
)
async def test_who_dies_again_and_again_is_replaced_ever_more_slowly_if_it_was(life: float, expected: list[float]):
    now = 0.0
    pauses: list[float] = []

    def clock() -> float:
        nonlocal now
        now += life
        return now

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == len(expected):
            supervisor.stop()

    supervisor = Supervisor(dies_when_it_serves, None, 1, clock=clock, pause=pause)
    assert len(await run(supervisor)) == 1
    assert pauses == expected


def test_pauses_grow_up_to_a_bound():
    pauses = [pause_after(early) for early in (*range(10), 10**6)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == MOST_PAUSE_SECONDS


# --- what processes share ---


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "alone"])
def test_an_address_where_somebody_listens_is_not_reserved_a_second_time(shared: bool):
    with listen("127.0.0.1", 0, shared=shared) as sock, pytest.raises(OSError, match="in use"):
        reserve("127.0.0.1", sock.getsockname()[1])


@pytest.mark.parametrize("before", ["", f"{ADMIN}=kept\n"], ids=["a first start", "a deleted line"])
def test_processes_that_start_at_once_have_the_same_keys_and_one_shows_them(tmp_path: Path, before: str):
    if before:
        (tmp_path / FILE).write_text(before)
        (tmp_path / FILE).chmod(0o600)
    settings = Settings(_env_file=None, data_dir=tmp_path)  # type: ignore[call-arg]
    together = threading.Barrier(8)
    found: list[Keys] = []

    def start() -> None:
        together.wait()
        found.append(load_keys(settings))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({(keys.admin.get_secret_value(), keys.connections) for keys in found}) == 1
    missing = {CONNECTION} if before else {ADMIN, CONNECTION}
    assert sorted(len(keys.new) for keys in found) == [0] * 7 + [len(missing)]
    assert load_keys(settings).new == set()
