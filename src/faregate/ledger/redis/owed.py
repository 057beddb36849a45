"""Calls that this node owes to Redis: it was away, or whoever made them has left. Made up for when it answers."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

from faregate.ledger.port import LedgerAway
from faregate.ledger.redis.link import Link

AGAIN = 0.25
"""Seconds before a call is made again that failed although Redis answers."""

log = logging.getLogger(__name__)

Call = Callable[[], Any]


class Owed:
    """Calls in the order in which they were owed, one of each kind for each key."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._calls: dict[tuple[str, str], Call] = {}
        self._paying: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._calls)

    def keys(self, what: str) -> Iterator[str]:
        """What calls of the kind `what` are owed for."""
        return (key for kind, key in self._calls if kind == what)

    async def call(self, what: str, key: str, call: Call) -> None:
        """Make `call` now, or later if Redis is away. Who is cancelled meanwhile leaves it to be made all the same."""
        try:
            await call()
        except (LedgerAway, asyncio.CancelledError) as error:
            self.owe(what, key, call)
            if not isinstance(error, LedgerAway):
                raise

    def owe(self, what: str, key: str, call: Call) -> None:
        """Make `call` as soon as Redis answers."""
        self._calls[what, key] = call
        if self._link.failure is None:
            self.pay_soon()

    def pay_soon(self) -> None:
        """Begin to make up for what is owed."""
        if self._paying is None or self._paying.done():
            self._paying = asyncio.create_task(self.pay(), name="ledger owed")

    async def pay(self) -> None:
        """Make up for what is owed. Returns also when Redis goes away again."""
        while self._calls:
            (what, key), call = next(iter(self._calls.items()))
            try:
                await call()
            except LedgerAway as error:
                log.info("%s of %s is made up for later: %s", what, key, error)
                if self._link.failure is not None:
                    return
                await asyncio.sleep(AGAIN)
                continue
            except Exception:
                # Our own mistake: what else is owed must not wait behind it for ever.
                log.exception("%s of %s could not be made up for", what, key)
            if self._calls.get((what, key)) is call:
                del self._calls[what, key]

    async def stop(self) -> None:
        """End what runs in the background."""
        if self._paying is not None:
            self._paying.cancel()
            await asyncio.gather(self._paying, return_exceptions=True)
