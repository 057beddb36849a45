"""What is done from time to time, by one node of all: roll-ups, partitions for the months to come, retention.

Every node looks every few seconds at what is due, which the database knows; the first one that finds something does
it, under a lock, so that the others pass it by. What came of it is kept in the database, for `/admin/jobs`.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from faregate.accounting.background import background, ended_soon
from faregate.accounting.clock import Clock, SystemClock
from faregate.store.errors import JobTaken, RollupFailed, StoreError, StoreUnavailable
from faregate.store.jobs import JobRun

ROLLUPS = "rollups"
PARTITIONS = "partitions"
RETENTION = "retention"
RECONCILIATION = "reconciliation"

LOOK_SECONDS = 10.0
"""Seconds between two looks at what is due: also between two runs of the roll-ups."""

HOURLY_SECONDS = 3600.0
"""Seconds between two runs of the other jobs."""

DAILY_SECONDS = 86_400.0
"""Seconds between two comparisons with OpenRouter."""

HOURS_AT_ONCE = 10
"""Hours that are added up before it is looked whether this node stops."""

KeptSince = Callable[[float], float | None]
"""Says at a time before which one records are dropped (both epoch seconds); None is never."""

log = logging.getLogger(__name__)


def _for_ever(_now: float) -> float | None:
    return None


class Estate(Protocol):
    """What is looked after: the store. Each method raises `StoreUnavailable` while the database is away."""

    async def refresh_rollups(self, limit: int, after: float = 0.0) -> int:
        """Add up at most `limit` stale hours after `after`; how many. Raises `JobTaken`, `RollupFailed`."""
        ...

    async def make_partitions(self, now: float) -> None:
        """Make the partitions of the months to come. Raises `JobTaken`."""
        ...

    async def drop_records(self, before: float) -> list[str]:
        """Drop some of the records before `before`; what, none if there are none. Raises `JobTaken`, `StillStale`."""
        ...

    async def note_job(self, run: JobRun) -> None:
        """Keep what came of a job."""
        ...

    async def jobs(self) -> list[JobRun]:
        """The last run of each job on any node."""
        ...


@dataclass(frozen=True, slots=True)
class _Job:
    name: str
    every: float
    work: Callable[[], Awaitable[str]]


class Upkeep:
    """Runs the jobs that are due, in the background."""

    def __init__(
        self,
        store: Estate,
        node: str,
        *,
        kept_since: KeptSince = _for_ever,
        compare: Callable[[float], Awaitable[str]] | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Without `kept_since`, and where that says None at the start, no records are dropped.

        `compare` compares the last complete day at a time (epoch seconds) with OpenRouter's own figures.
        """
        self._store = store
        self._node = node
        self._kept_since = kept_since
        self._clock = clock or SystemClock()
        # Partitions first: records cannot do without them.
        self._jobs = [
            _Job(PARTITIONS, HOURLY_SECONDS, self._make_partitions),
            _Job(ROLLUPS, LOOK_SECONDS, self._add_up),
        ]
        if kept_since(self._clock.time()) is not None:
            self._jobs.append(_Job(RETENTION, HOURLY_SECONDS, self._drop))
        if compare is not None:
            self._jobs.append(_Job(RECONCILIATION, DAILY_SECONDS, lambda: compare(self._clock.time())))
        self._last_runs: dict[str, float] = {}
        self._failures: dict[str, str] = {}
        self._is_away = False
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def plan(self) -> Mapping[str, float]:
        """The jobs, and the seconds between two runs of each."""
        return {job.name: job.every for job in self._jobs}

    @property
    def last_runs(self) -> Mapping[str, float]:
        """When this very node last did each job without an error (epoch seconds); only those that it ever did."""
        return dict(self._last_runs)

    def start(self) -> None:
        """Begin to look at what is due."""
        self._stopping.clear()
        self._task = background(self._run(), "upkeep")

    async def stop(self) -> None:
        """Do no more. A step that is under way is finished, if that is soon."""
        self._stopping.set()
        if self._task is not None:
            await ended_soon(self._task)
            self._task = None

    async def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                await self._round()
                if self._is_away:
                    log.info("jobs are done again: the database is back")
                self._is_away = False
            except StoreUnavailable as error:
                # Once is news.
                log.log(logging.DEBUG if self._is_away else logging.WARNING, "jobs wait for the database: %s", error)
                self._is_away = True
            except Exception:
                # Whatever it was: a node without this would run out of partitions one day.
                log.exception("jobs could not be looked after; tried again in %g seconds", LOOK_SECONDS)
            await self._clock.wait(self._stopping, LOOK_SECONDS)

    async def _round(self) -> None:
        last = {run.name: run for run in await self._store.jobs()}
        for job in self._jobs:
            if not self._stopping.is_set() and is_due(last.get(job.name), job.every, self._clock.time()):
                await self._do(job)

    async def _do(self, job: _Job) -> None:
        ran_at, began = self._clock.time(), self._clock.monotonic()
        failure: Exception | None = None
        try:
            said = await job.work()
        except JobTaken:
            return
        except Exception as error:  # noqa: BLE001 - whatever it was, the other jobs are to be done
            # Of an error that nobody foresaw only its kind: its text may quote what is in a row.
            failure, said = error, f"failed: {error if isinstance(error, StoreError) else type(error).__name__}"
        duration_ms = round((self._clock.monotonic() - began) * 1000)
        # If the database is away, this says so. Else it was the job alone, and is not tried again at once.
        await self._store.note_job(JobRun(job.name, ran_at, duration_ms, self._node, said))
        if failure is None:
            self._failures.pop(job.name, None)
            self._last_runs[job.name] = ran_at
        else:
            self._report(job, said, failure)

    def _report(self, job: _Job, said: str, failure: Exception) -> None:
        level = logging.DEBUG if self._failures.get(job.name) == said else logging.ERROR
        self._failures[job.name] = said
        unforeseen = None if isinstance(failure, StoreError) else failure
        log.log(level, "the job %s is tried again in %g seconds: it %s", job.name, job.every, said, exc_info=unforeseen)

    async def _add_up(self) -> str:
        done, after, failures = 0, 0.0, []
        while not self._stopping.is_set():
            try:
                some = await self._store.refresh_rollups(HOURS_AT_ONCE, after)
            except RollupFailed as failed:
                # Those after it are not to wait for what may never succeed.
                after = failed.hour
                failures.append(failed)
                continue
            done += some
            # Less is all there was; hours that are written to at this moment would keep it busy for ever.
            if some < HOURS_AT_ONCE:
                break
        if failures:
            raise failures[0]
        return f"{done} {'hour' if done == 1 else 'hours'} added up" if done else "every hour was added up already"

    async def _make_partitions(self) -> str:
        await self._store.make_partitions(self._clock.time())
        return "the months to come are there"

    async def _drop(self) -> str:
        before = self._kept_since(self._clock.time())
        dropped: list[str] = []
        while before is not None and not self._stopping.is_set() and (some := await self._store.drop_records(before)):
            dropped += some
        if not dropped:
            return "no month was old enough to be dropped"
        # On SQLite it is done in many steps that say the same.
        return f"dropped: {', '.join(f'{what} ({n} times)' if n > 1 else what for what, n in Counter(dropped).items())}"


def is_due(last: JobRun | None, every: float, now: float) -> bool:
    """Whether a job that is done `every` seconds is to be done at `now` (epoch seconds); `last` was its last run.

    One that takes long is done less often: roll-ups add up a whole hour each time, and writers wait for that. A run in
    the far future is of a node whose clock was wrong: the others do not wait for that time.
    """
    if last is None:
        return True
    every = last.next_after(every)
    return not now - every < last.ran_at <= now + every
