"""An answer on its way: paced, in pieces, cut or silent as planned, and given up at once when the client leaves."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_NOT_A_HEADER = [(b"not a header", b"")]


class Ending(Enum):
    """How an answer ends: whole, with a broken connection, or in silence until the client leaves."""

    WHOLE = auto()
    CUT = auto()
    SILENCE = auto()


@dataclass(frozen=True, slots=True)
class Plan:
    """What is sent, and when. `lead` (comments, white space) comes before the `steps`, which are counted.

    Seconds: `wait` before the first byte, `pace` between pieces. `split`: bytes per write, 0 for whole pieces.
    """

    status: int
    headers: list[tuple[bytes, bytes]]
    steps: list[bytes]
    lead: tuple[bytes, ...] = ()
    ending: Ending = Ending.WHOLE
    wait: float = 0.0
    pace: float = 0.0
    split: int = 0

    @property
    def at_once(self) -> bool:
        """Whether nothing stands against one write of everything."""
        return self.ending is Ending.WHOLE and not (self.wait or self.pace or self.split)


Settle = Callable[[int, bool], None]
"""Called once, with the number of steps sent and whether the client left (or was cut off)."""


async def deliver(plan: Plan, receive: Receive, send: Send, settle: Settle) -> None:
    """Send the answer. `settle` is called before its last byte goes out, so that whoever has it finds the bill."""
    if plan.at_once:
        settle(len(plan.steps), False)
        await send({"type": "http.response.start", "status": plan.status, "headers": plan.headers})
        await send({"type": "http.response.body", "body": b"".join((*plan.lead, *plan.steps))})
        return
    gone = asyncio.ensure_future(_left(receive))
    try:
        await _Delivery(plan, send, settle, gone).run()
    finally:
        gone.cancel()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Delivery:
    """A delivery in steps, racing the client's patience."""

    def __init__(self, plan: Plan, send: Send, settle: Settle, gone: "asyncio.Future[None]") -> None:
        self._plan = plan
        self._send = send
        self._settle = settle
        self._gone = gone

    async def run(self) -> None:
        plan = self._plan
        if await self._left_within(plan.wait):
            return self._settle(0, True)
        pieces = [*plan.lead, *plan.steps]
        if pieces:
            await self._send({"type": "http.response.start", "status": plan.status, "headers": plan.headers})
        for index, piece in enumerate(pieces):
            if await self._left_within(plan.pace if index else 0):
                return self._settle(self._steps(index), True)
            last = plan.ending is Ending.WHOLE and index == len(pieces) - 1
            if last:
                self._settle(len(plan.steps), False)
            await self._write(piece, last=last)
        if plan.ending is Ending.WHOLE:
            return None
        if plan.ending is Ending.SILENCE:
            await self._gone
        self._settle(len(plan.steps), True)
        if not pieces and plan.ending is Ending.CUT:
            await self._break_before_headers()
        return None

    def _steps(self, pieces: int) -> int:
        return max(0, pieces - len(self._plan.lead))

    async def _left_within(self, seconds: float) -> bool:
        if seconds and not self._gone.done():
            await asyncio.wait((self._gone,), timeout=seconds)
        return self._gone.done()

    async def _write(self, piece: bytes, *, last: bool) -> None:
        size = self._plan.split or len(piece)
        for start in range(0, len(piece), size):
            more = not (last and start + size >= len(piece))
            await self._send({"type": "http.response.body", "body": piece[start : start + size], "more_body": more})
            if self._plan.split:
                await asyncio.sleep(0)

    async def _break_before_headers(self) -> None:
        """Close the connection without a byte: uvicorn does so for an answer whose first header it cannot write."""
        with suppress(RuntimeError):
            await self._send({"type": "http.response.start", "status": 200, "headers": _NOT_A_HEADER})
