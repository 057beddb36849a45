"""Tasks that run beside the requests."""

import asyncio
import logging
from collections.abc import Coroutine

FAREWELL_SECONDS = 2.0
"""How long a stop waits for work that is under way: the database may be silent, and not say so."""

log = logging.getLogger(__name__)


def background(work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
    """Run `work` beside the requests. Should it ever end by an error, that is said at once, not when it is stopped."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_report)
    return task


async def ended(task: asyncio.Task[None]) -> None:
    """Wait for the end of `task`. How it ended was said then: who comes to stop it has more to stop."""
    await asyncio.wait([task])


async def ended_soon(*tasks: asyncio.Task[None]) -> None:
    """Wait at most `FAREWELL_SECONDS` for the end of `tasks`, then break off those that still work.

    What that leaves undone is like what a node leaves that is killed: whoever comes after it finds it.
    """
    if not tasks:
        return
    _, working = await asyncio.wait(tasks, timeout=FAREWELL_SECONDS)
    for task in working:
        task.cancel()
    if working:
        await asyncio.wait(working)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("the background task %s has ended by an error", task.get_name(), exc_info=error)
