"""Several processes that do the same work: started together, replaced when they die, stopped together.

A worker has a session of its own: a terminal's Ctrl-C reaches the supervisor alone, which tells its workers. The pipe
between the two tells each of the other's end, however it comes.
"""

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from faregate.server import on_signals

FIRST_PAUSE_SECONDS = 1.0
MOST_PAUSE_SECONDS = 30.0
STEADY_SECONDS = 60.0
"""A worker that lived as long was well: the one that takes its place need not wait."""

_PROGRAM = "from faregate.workers import main; main()"
_STOP = "stop"
_HURRY = "hurry"
_log = logging.getLogger(__name__)


class WorkerFailed(Exception):
    """A worker did not come up at the first start. The message is a sentence that says why."""


@dataclass(frozen=True, slots=True)
class _Serving:
    news: Any


@dataclass(frozen=True, slots=True)
class _Failed:
    sentence: str


class Link:
    """A worker's line to its supervisor."""

    def __init__(self, connection: "Connection[Any, Any]") -> None:
        self._connection = connection

    def obey(self, stop: Callable[[], None], hurry: Callable[[], None]) -> None:
        """From now on, call what the supervisor orders, on the running loop. Its end is an order to stop."""
        loop, descriptor = asyncio.get_running_loop(), self._connection.fileno()

        def hear() -> None:
            try:
                order = self._connection.recv()
            except (EOFError, OSError):
                loop.remove_reader(descriptor)
                _log.warning("The supervisor is gone: no new requests; those that run may finish.")
                order = _STOP
            (hurry if order == _HURRY else stop)()

        loop.add_reader(descriptor, hear)

    def serving(self, news: Any) -> None:
        """Tell that this worker serves, and what the supervisor wants to know of it."""
        self._say(_Serving(news))

    def failed(self, sentence: str) -> None:
        """Tell why this worker cannot start, in a sentence for people."""
        self._say(_Failed(sentence))

    def _say(self, word: _Serving | _Failed) -> None:
        # Nobody is left to hear it: the end of the line says so too, and is heard by `obey`.
        with contextlib.suppress(OSError):
            self._connection.send(word)


Entry = Callable[[Any, Link], None]
"""The work: called with the job and the link, in a process of its own. It can be imported by its name."""


def main() -> None:
    """What a worker process begins with: it learns from its supervisor what to do, and does it."""
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    connection: Connection[Any, Any] = Connection(descriptor)
    entry, job = connection.recv()
    entry(job, Link(connection))


class _Worker:
    """One worker process, as its supervisor sees it."""

    def __init__(self, process: Process, connection: "Connection[Any, Any]") -> None:
        self.pid = process.pid
        self._process = process
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self.word: asyncio.Future[_Serving | _Failed | None] = self._loop.create_future()
        """What it says first, None if it ends without a word."""
        self._loop.add_reader(connection.fileno(), self._hear)

    @classmethod
    async def start(cls, entry: Entry, job: Any) -> "_Worker":
        """Raises OSError when the system has no process for it."""
        ours, theirs = multiprocessing.Pipe()
        with theirs:
            try:
                # Before it is there to read: the pipe keeps it, and no end of the worker can break this.
                ours.send((entry, job))
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-P",  # what lies in the current folder is not to be imported
                    "-c",
                    _PROGRAM,
                    str(theirs.fileno()),
                    stdin=DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        return cls(process, ours)

    def tell(self, order: str) -> None:
        """Give an order. One that has ended meanwhile does not hear it."""
        with contextlib.suppress(OSError):
            self._connection.send(order)

    async def ended(self) -> int:
        """Its exit code, once it has ended; minus the signal that killed it."""
        code = await self._process.wait()
        self._loop.remove_reader(self._connection.fileno())
        self._connection.close()
        return code

    def _hear(self) -> None:
        try:
            word = self._connection.recv()
        except (EOFError, OSError):
            self._loop.remove_reader(self._connection.fileno())
            word = None
        if not self.word.done():
            self.word.set_result(word)


class Supervisor:
    """Keeps so many workers at the same job until it is told to stop. Made on a running loop."""

    def __init__(
        self,
        entry: Entry,
        job: Any,
        number: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`clock` and `pause` count seconds; `job` can be pickled."""
        self._entry = entry
        self._job = job
        self._number = number
        self._clock = clock
        self._pause = pause
        self._workers: set[_Worker] = set()
        self._told: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def stop(self) -> None:
        """Tell all workers to stop, and start no more."""
        if not self._told.done():
            self._told.set_result(None)
            self._tell_all(_STOP)

    def hurry(self) -> None:
        """Tell all workers not to wait for what still runs."""
        self._tell_all(_HURRY)

    async def run(self, serving: Callable[[list[Any]], None]) -> None:
        """Keep the workers; return when it was told to stop and all have ended.

        `serving` is called once, with the news of each worker, when all serve. Raises `WorkerFailed` when one does
        not come up at the first start; the others are stopped first.
        """
        loop = asyncio.get_running_loop()
        firsts: list[asyncio.Future[Any]] = [loop.create_future() for _ in range(self._number)]
        places = [loop.create_task(self._fill(first)) for first in firsts]
        everyone = asyncio.gather(*firsts)
        try:
            either: set[asyncio.Future[Any]] = {everyone, self._told, *places}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if everyone.done():
                serving(everyone.result())
                await asyncio.wait({self._told, *places}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.stop()
            everyone.cancel()
            await asyncio.gather(*places)

    async def _fill(self, first: "asyncio.Future[Any]") -> None:
        """Keep a worker in one place: one after the other, until the stop."""
        early = 0
        while not self._told.done():
            born = self._clock()
            why = await self._employ(first)
            if self._told.done():
                return
            if not first.done():
                first.set_exception(WorkerFailed(why))
                return
            early = early + 1 if self._clock() - born < STEADY_SECONDS else 0
            pause = pause_after(early)
            _log.error("%s Another takes its place%s.", why, f" in {pause:g} s" if pause else "")
            await self._rest(pause)

    async def _employ(self, first: "asyncio.Future[Any]") -> str:
        """One worker from its start to its end; a sentence that says how that came."""
        try:
            worker = await _Worker.start(self._entry, self._job)
        except OSError as error:
            return f"A process for a worker could not be started: {error}."
        self._workers.add(worker)
        if self._told.done():
            worker.tell(_STOP)
        word = await worker.word
        if isinstance(word, _Serving):
            if first.done():
                _log.info("Worker %d serves.", worker.pid)
            else:
                first.set_result(word.news)
        code = await worker.ended()
        self._workers.discard(worker)
        who = f"Worker {worker.pid}"
        if self._told.done() and isinstance(word, _Serving) and code:
            _log.error("%s was told to stop and ended with %s.", who, _named(code))
        if isinstance(word, _Failed):
            return f"{who} could not start: {word.sentence}" if first.done() else word.sentence
        early = "" if isinstance(word, _Serving) else " before it served"
        more = "; what it wrote before says why" if code > 0 else ""
        return f"{who} ended with {_named(code)}{early}{more}."

    async def _rest(self, seconds: float) -> None:
        """A pause that the stop ends."""
        resting = asyncio.ensure_future(self._pause(seconds))
        await asyncio.wait({resting, self._told}, return_when=asyncio.FIRST_COMPLETED)
        resting.cancel()

    def _tell_all(self, order: str) -> None:
        for worker in self._workers:
            worker.tell(order)


def pause_after(early: int) -> float:
    """Seconds before a worker is replaced, when so many in a row, itself included, died soon after their start.

    None for the first; then longer and longer, so that what kills workers at their start does not also keep the
    machine busy.
    """
    if early < 2:
        return 0.0
    return float(min(MOST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(early - 2, 10)))


async def run_workers(entry: Entry, job: Any, number: int, serving: Callable[[list[Any]], None]) -> None:
    """Keep `number` workers until SIGTERM or SIGINT; again, and they hurry. Raises `WorkerFailed`, see `Supervisor`."""
    supervisor = Supervisor(entry, job, number)
    on_signals(supervisor.stop, supervisor.hurry)
    await supervisor.run(serving)


def _named(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
