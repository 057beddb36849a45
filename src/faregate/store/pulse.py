"""Whether the database answers, asked by many and waited for by nobody for long: it may be silent, and not say so."""

import asyncio
from collections.abc import Callable, Coroutine

from faregate.store.errors import StoreUnavailable


class Pulse:
    """One question to the database at a time, however many ask: those of a database that is silent would use up all
    its connections."""

    def __init__(self, ask: Callable[[], Coroutine[None, None, None]]) -> None:
        """`ask` returns when the database answers; it raises `StoreUnavailable`."""
        self._ask = ask
        self._question: asyncio.Task[None] | None = None

    async def feel(self, patience: float) -> None:
        """Return if the database answers within `patience` seconds. Raises `StoreUnavailable`."""
        if self._question is None or self._question.done():
            self._question = asyncio.create_task(self._ask())
            self._question.add_done_callback(_seen)
        question = self._question
        # The question goes on: a driver that is broken off leaves its connection in the middle of something.
        await asyncio.wait({question}, timeout=patience)
        if not question.done():
            raise StoreUnavailable(f"the database did not answer within {patience:g} s; try again")
        question.result()


def _seen(question: "asyncio.Task[None]") -> None:
    # Nobody may be there any more to whom it matters how it ended.
    if not question.cancelled():
        question.exception()
