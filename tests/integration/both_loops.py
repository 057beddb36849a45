"""Tests that run on both event loops: the one of Python, and the one that serves."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop


def on_both_loops(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """The test, once on each loop. A task that stays behind fails it, and an error that nobody awaits."""

    async def watched(arguments: dict[str, Any]) -> None:
        unseen: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
        async with asyncio.timeout(60):
            await test(**arguments)
        # What serves in the test has connections to end.
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others, timeout=20)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert unseen == []

    def on_one(on: Callable[..., None], **arguments: Any) -> None:
        on(watched(arguments))

    own = inspect.signature(test)
    first = inspect.Parameter("on", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    on_one.__signature__ = own.replace(parameters=[first, *own.parameters.values()])  # type: ignore[attr-defined]
    on_one.__name__, on_one.__doc__, on_one.__module__ = test.__name__, test.__doc__, test.__module__
    on_one.__dict__.update(test.__dict__)
    return pytest.mark.parametrize("on", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])(on_one)
