"""Late settlement: asks OpenRouter what a request cost, with growing patience, then settles on the estimate.

OpenRouter answers 404 for the first minutes, and for ever where a request failed (contract, section 4). Nothing is
lost when the process stops: the hold in the journal and the pending row in the database keep each item.
"""

import asyncio
import heapq
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import count

from faregate.accounting.background import background
from faregate.accounting.clock import Clock, SystemClock
from faregate.accounting.figures import estimated, from_generation, with_known_tokens
from faregate.accounting.generation import AskFailed, Generation
from faregate.ledger.journal import JournalError
from faregate.records import UsageRecord

DELAYS = (2.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)
"""Seconds before each question (contract, section 4)."""

EXTRA_QUESTIONS = 24
"""A question that fails tells nothing about the generation, so the last one is repeated this often."""

SETTLE_AGAIN_SECONDS = 5.0
"""After the journal could not be written."""

PARALLEL = 8
"""Questions under way at once."""

Ask = Callable[[str], Awaitable[Generation | None]]
"""Asks about a generation id. None: OpenRouter does not know it (yet). Raises `AskFailed` for all else."""

Settle = Callable[[UsageRecord], Awaitable[bool]]
"""Settles a final record. Raises `JournalError` where it cannot."""

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Item:
    record: UsageRecord
    is_final: bool
    questions: int = 0
    settling: bool = False


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
        self._parallel = parallel
        self._items: dict[str, _Item] = {}
        self._due: list[tuple[float, int, _Item]] = []
        self._order = count()
        self._wake = asyncio.Event()
        self._working: dict[asyncio.Task[None], _Item] = {}
        self._task: asyncio.Task[None] | None = None

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._items

    def __len__(self) -> int:
        return len(self._items)

    def ask_later(self, record: UsageRecord) -> None:
        """Find out what `record` cost, then settle it; at once, on the estimate, if there is no id to ask about.

        Its status is how the request ended, its facts are those of the hold. Repeating changes nothing.
        """
        if record.facts.request_id not in self._items:
            delay = self._delays[0] if record.generation_id is not None else 0.0
            self._put(_Item(record, is_final=False), delay)

    def settle_later(self, record: UsageRecord) -> None:
        """Settle `record`, whose figures are final, as soon as the ledger takes it."""
        self._put(_Item(record, is_final=True), SETTLE_AGAIN_SECONDS)

    def start(self, settle: Settle) -> None:
        """Begin to ask and to settle. What was added before waits for this."""
        self._task = background(self._run(settle), "reconciler")

    async def stop(self) -> None:
        """Ask no more. A settlement under way is finished, the rest is kept for the next start."""
        ending = [task for task, item in self._working.items() if not item.settling]
        if self._task is not None:
            ending.append(self._task)
            self._task = None
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, *self._working, return_exceptions=True)

    async def _run(self, settle: Settle) -> None:
        while True:
            now = self._clock.monotonic()
            while self._due and self._due[0][0] <= now and len(self._working) < self._parallel:
                _, _, item = heapq.heappop(self._due)
                # Another may have taken its place since.
                if self._items.get(item.record.facts.request_id) is item:
                    task = asyncio.create_task(self._work(item, settle))
                    self._working[task] = item
                    task.add_done_callback(self._worked)
            self._wake.clear()
            idle = not self._due or len(self._working) >= self._parallel
            await self._clock.wait(self._wake, None if idle else self._due[0][0] - now)

    async def _work(self, item: _Item, settle: Settle) -> None:
        if not item.is_final and not await self._find_out(item):
            self._schedule(item, self._delays[min(item.questions, len(self._delays) - 1)])
            return
        item.settling = True
        try:
            await settle(item.record)
        except JournalError as error:
            log.warning("request %s is settled later: %s", item.record.facts.request_id, error)
            item.settling = False
            self._schedule(item, SETTLE_AGAIN_SECONDS)
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
        item = self._working.pop(task)
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
        heapq.heappush(self._due, (self._clock.monotonic() + delay, next(self._order), item))
        self._wake.set()
