"""Time for the parts that wait: one seam, so that tests turn the hands themselves."""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """What time it is, and waiting for an event or for time to pass."""

    def time(self) -> float:
        """Seconds since the epoch: the time that ledgers and records speak."""
        ...

    def monotonic(self) -> float:
        """Seconds that nobody sets back: the time to measure waits and ages with."""
        ...

    async def wait(self, event: asyncio.Event, seconds: float | None) -> None:
        """Return once `event` is set or `seconds` have passed (None: however long it takes)."""
        ...


class SystemClock:
    """The machine's clock."""

    def time(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since some moment in the past."""
        return time.monotonic()

    async def wait(self, event: asyncio.Event, seconds: float | None) -> None:
        """Return once `event` is set or `seconds` have passed."""
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return
