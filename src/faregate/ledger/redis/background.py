"""Work in the background, and what becomes of its errors where nobody waits for it."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from faregate.ledger.port import LedgerAway

log = logging.getLogger(__name__)


def seen(task: asyncio.Future[Any]) -> None:
    """What `task` ends with when it is done: a `LedgerAway` is dropped, what is our own mistake is logged."""
    # Whoever waits for it hears of its error; where nobody does, the next call will meet the same.
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, LedgerAway):
        log.error("the shared ledger made a mistake", exc_info=error)


class Work:
    """Something that is done when it is needed, by one task at a time.

    Several may wait for that task: who does so shields it, so that it goes on when they leave.
    """

    def __init__(
        self, do: Callable[[], Coroutine[Any, Any, None]], name: str, done: Callable[[asyncio.Task[None]], None] = seen
    ) -> None:
        """`name` is that of the task; `done` is called with each that ends."""
        self._do = do
        self._name = name
        self._done = done
        self.task: asyncio.Task[None] | None = None
        """The last that was begun."""

    def begin(self) -> asyncio.Task[None]:
        """Have it done: by the task that is at it, else by a new one."""
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self._do(), name=self._name)
            self.task.add_done_callback(self._done)
        return self.task
