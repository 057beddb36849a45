"""Transactions that are not broken off: who waits for one may leave at any moment, and it ends all the same."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def unbroken(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Let `method` run to its end even if the task that awaits it is cancelled.

    A driver whose call is cancelled is still at work in its thread, or on its socket: the connection would go back to
    the pool in the middle of a transaction, with its locks.
    """

    @functools.wraps(method)
    async def whole(*args: P.args, **named: P.kwargs) -> T:
        task = asyncio.ensure_future(method(*args, **named))
        task.add_done_callback(_seen)
        return await asyncio.shield(task)

    return whole


def _seen(task: "asyncio.Future[Any]") -> None:
    # Where nobody waits any more, nobody asks how it ended.
    if not task.cancelled():
        task.exception()
