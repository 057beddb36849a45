"""Late settlement: asks OpenRouter what a request cost, with growing patience, then settles on the estimate.

OpenRouter answers 404 for the first minutes, and for ever where a request failed (contract, section 4). Nothing is
lost when the process stops: the hold, in the journal or the shared ledger, and the pending row in the database keep
each item.
"""

import asyncio
import heapq
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import count
from math import inf

from faregate.accounting.background import background, ended_soon
from faregate.accounting.clock import Clock, SystemClock
from faregate.accounting.figures import estimated, from_generation, with_known_tokens
from faregate.accounting.generation import AskFailed, Generation
from faregate.ledger.port import LedgerAway
from faregate.records import UsageRecord
from faregate.store.errors import StoreUnavailable

DELAYS = (2.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)
"""Seconds before each question (contract, section 4)."""

EXTRA_QUESTIONS = 24
"""A question that fails tells nothing about the generation, so the last one is repeated this often."""

FIRST_PATIENCE = 0.5
MOST_PATIENCE = 5.0
"""Seconds between two tries to settle while the ledger is away: doubled each time, from the first to the most."""

PARALLEL = 8
"""Questions under way at once."""

SETTLING = 250
"""Settlements under way at once of items whose figures are final. They go to the ledger together."""

Ask = Callable[[str], Awaitable[Generation | None]]
"""Asks about a generation id. None: OpenRouter does not know it (yet). Raises `AskFailed` for all else."""

Settle = Callable[[UsageRecord], Awaitable[bool]]
"""Settles a final record. Raises `LedgerAway` or `StoreUnavailable` while it cannot."""

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Item:
    record: UsageRecord
    is_final: bool
    questions: int = 0
    tries: int = 0
    settling: bool = False


class _Lane:
    """Items by the moment at which they are due, of which so many may be worked on at once."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._due: list[tuple[float, int, _Item]] = []
        self._order = count()
        self.busy = 0

    def add(self, due: float, item: _Item) -> None:
        heapq.heappush(self._due, (due, next(self._order), item))

    def take(self, now: float) -> _Item | None:
        """The next item that is due by `now`, if there is room for it."""
        return heapq.heappop(self._due)[2] if self.next_due() <= now else None

    def next_due(self) -> float:
        """When the next item can be taken; infinite if that is not a matter of time."""
        return self._due[0][0] if self._due and self.busy < self._width else inf

    def hurry(self, now: float) -> None:
        """Have everything due by `now`, the longest awaited first."""
        self._due = [(min(due, now), order, item) for due, order, item in self._due]
        heapq.heapify(self._due)


class Reconciler:
    """The requests that are over and not settled yet."""

    def __init__(
        self,
        ask: Ask,
        *,
        delays: Sequence[float] = DELAYS,
        clock: Clock | None = None,
        parallel: int = PARALLEL,
    ) -> None:
        self._ask = ask
        self._delays = tuple(delays)
        self._clock = clock or SystemClock()
        self._items: dict[str, _Item] = {}
        self._asking = _Lane(parallel)
        self._final = _Lane(SETTLING)
        self._wake = asyncio.Event()
        self._working: dict[asyncio.Task[None], tuple[_Item, _Lane]] = {}
        self._task: asyncio.Task[None] | None = None

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._items

    def __len__(self) -> int:
        return len(self._items)

    def ask_later(self, record: UsageRecord, *, others_first: bool = False) -> None:
        """Find out what `record` cost, then settle it; at once, on the estimate, if there is no id to ask about.

        Its status is how the request ended, its facts are those of the hold. Repeating changes nothing. With
        `others_first` the estimate too waits for as long as a first question would: another node may know better.
        """
        if record.facts.request_id not in self._items:
            waits = others_first or record.generation_id is not None
            self._put(_Item(record, is_final=False), self._delays[0] if waits else 0.0)

    def settle_later(self, record: UsageRecord) -> None:
        """Settle `record`, whose figures are final, as soon as the ledger takes it: it did not just now."""
        before = self._items.get(record.facts.request_id)
        item = _Item(record, is_final=True, tries=1 if before is None else before.tries + 1)
        self._put(item, _patience(item.tries))

    def settle_now(self, record: UsageRecord) -> None:
        """Settle `record`, whose figures are final, at once, and again until the ledger takes it."""
        self._put(_Item(record, is_final=True), 0.0)

    def hurry(self) -> None:
        """The ledger is back: settle at once what only waits for it."""
        # Also of those that are under way, and may learn only now that it was away.
        for item in self._items.values():
            item.tries = 0
        self._final.hurry(self._clock.monotonic())
        self._wake.set()

    def start(self, settle: Settle) -> None:
        """Begin to ask and to settle. What was added before waits for this."""
        self._task = background(self._run(settle), "reconciler")

    async def stop(self) -> None:
        """Ask no more. A settlement under way is finished, if that is soon; the rest is kept for the next start."""
        ending = [task for task, (item, _) in self._working.items() if not item.settling]
        if self._task is not None:
            ending.append(self._task)
            self._task = None
        for task in ending:
            task.cancel()
        await ended_soon(*ending, *self._working)

    async def _run(self, settle: Settle) -> None:
        lanes = (self._final, self._asking)
        while True:
            now = self._clock.monotonic()
            for lane in lanes:
                while (item := lane.take(now)) is not None:
                    # Another may have taken its place since.
                    if self._items.get(item.record.facts.request_id) is item:
                        self._begin(item, lane, settle)
            self._wake.clear()
            due = min(lane.next_due() for lane in lanes)
            await self._clock.wait(self._wake, None if due == inf else due - now)

    def _begin(self, item: _Item, lane: _Lane, settle: Settle) -> None:
        task = asyncio.create_task(self._work(item, settle))
        lane.busy += 1
        self._working[task] = item, lane
        task.add_done_callback(self._worked)

    async def _work(self, item: _Item, settle: Settle) -> None:
        if not item.is_final and not await self._find_out(item):
            self._schedule(item, self._delays[min(item.questions, len(self._delays) - 1)])
            return
        item.settling = True
        try:
            await settle(item.record)
        except (LedgerAway, StoreUnavailable) as error:
            # Once is news. A long outage would repeat it for every item, again and again.
            level = logging.DEBUG if item.tries else logging.WARNING
            log.log(level, "request %s is settled later: %s", item.record.facts.request_id, error)
            item.settling = False
            item.tries += 1
            self._schedule(item, _patience(item.tries))
            return
        if self._items.get(item.record.facts.request_id) is item:
            del self._items[item.record.facts.request_id]

    async def _find_out(self, item: _Item) -> bool:
        """Ask once; whether the figures of `item` are final now."""
        record, generation, answered = item.record, None, True
        if record.generation_id is not None:
            try:
                generation = await self._ask(record.generation_id)
            except AskFailed as error:
                log.info("OpenRouter could not be asked about request %s: %s", record.facts.request_id, error)
                answered = False
            item.questions += 1
        final = None
        if generation is not None:
            final = from_generation(record, generation)
            item.record = record = with_known_tokens(record, generation)
        if final is None:
            if record.generation_id is not None and self._may_ask_again(item, answered):
                return False
            final = estimated(record)
            log.warning("request %s is settled on the estimate, %s dollars", record.facts.request_id, final.cost)
        item.record, item.is_final = final, True
        return True

    def _may_ask_again(self, item: _Item, answered: bool) -> bool:
        if item.questions < len(self._delays):
            return True
        return not answered and item.questions < len(self._delays) + EXTRA_QUESTIONS

    def _worked(self, task: asyncio.Task[None]) -> None:
        item, lane = self._working.pop(task)
        lane.busy -= 1
        item.settling = False
        self._wake.set()
        if task.cancelled():
            self._schedule(item, 0.0)
        elif (error := task.exception()) is not None:
            # Our own mistake: it must not end the settling of the others, nor be forgotten.
            log.error("request %s could not be settled", item.record.facts.request_id, exc_info=error)
            self._schedule(item, self._delays[-1])

    def _put(self, item: _Item, delay: float) -> None:
        self._items[item.record.facts.request_id] = item
        self._schedule(item, delay)

    def _schedule(self, item: _Item, delay: float) -> None:
        lane = self._final if item.is_final else self._asking
        lane.add(self._clock.monotonic() + delay, item)
        self._wake.set()


def _patience(tries: int) -> float:
    doublings = min(tries - 1, 10)
    return min(FIRST_PATIENCE * 2.0**doublings, MOST_PATIENCE)
