"""Who waits while OpenRouter runs as much for our account as it will: fairly by person, and not for long.

The budget in flight is the account's (contract with OpenRouter, section 5.3), so there is one line, whatever the key.
It opens as a connection of TCP does: one request goes ahead, each that is let in widens the way by one, and a refusal
closes it for as long as OpenRouter says.
"""

import asyncio
from collections import deque
from enum import Enum
from math import ceil
from typing import Generic, TypeVar

T = TypeVar("T")

QUIET_SECONDS = 0.5
"""A refusal comes at once: a request that has none for so long has been let in."""
SHORTEST_PAUSE = 0.25
DEFAULT_PAUSE = 1.0
"""Seconds that the line is closed for, where OpenRouter does not say."""


class FairQueue(Generic[T]):
    """Round robin over people, first come first served within one."""

    def __init__(self) -> None:
        # In the order of their turns.
        self._people: dict[str, deque[T]] = {}

    def __bool__(self) -> bool:
        return bool(self._people)

    def add(self, person: str, item: T) -> None:
        """Behind whatever this person has here."""
        self._people.setdefault(person, deque()).append(item)

    def put_back(self, person: str, item: T) -> None:
        """It had its turn in vain: the first of this person's at their next turn, which comes after everybody's."""
        items = self._people.pop(person, deque())
        items.appendleft(item)
        self._people[person] = items

    def next(self) -> T:
        """Take the one whose turn it is."""
        person = next(iter(self._people))
        items = self._people.pop(person)
        item = items.popleft()
        if items:
            self._people[person] = items
        return item

    def remove(self, person: str, item: T) -> None:
        """Take one out, if it is here."""
        items = self._people.get(person)
        if items is not None and item in items:
            items.remove(item)
            if not items:
                del self._people[person]


class Call(Enum):
    """How waiting ends: `GO`, it is this one's turn; `LATE`, its time is up; `LEFT`, nobody waits any more."""

    GO = "go"
    LATE = "late"
    LEFT = "left"


class Line:
    """The requests that wait. `seconds` is how long each may, all its turns together."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._queue: FairQueue[Turn] = FairQueue()
        self._ahead = 0
        self._width = 1
        self._closed_until = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def busy(self) -> bool:
        """Whether somebody waits: who comes now stands behind them."""
        return bool(self._queue)

    @property
    def retry_after(self) -> int:
        """Whole seconds after which it makes sense to come again."""
        return max(1, ceil(self._closed_until - self._loop.time()))

    def join(self, person: str) -> "Turn":
        """A place in the line, behind what this person has there."""
        turn = Turn(self, person, self._loop.time() + self.seconds)
        self._queue.add(person, turn)
        return turn

    def close(self, delay: float | None) -> None:
        """OpenRouter has refused a request: nobody goes ahead for `delay` seconds."""
        self._width = 1
        pause = DEFAULT_PAUSE if delay is None else max(SHORTEST_PAUSE, delay)
        self._closed_until = max(self._closed_until, self._loop.time() + pause)

    def release(self) -> None:
        """Let go ahead who may."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._queue and self._loop.time() < self._closed_until:
            self._timer = self._loop.call_at(self._closed_until, self.release)
            return
        while self._queue and self._ahead < self._width:
            self._ahead += 1
            self._queue.next().go()
        if not self._queue and not self._ahead:
            self._width = 1

    def opens_by(self, deadline: float) -> bool:
        """Whether anybody may go ahead before `deadline`."""
        return self._closed_until < deadline

    def forget(self, turn: "Turn") -> None:
        """`turn` does not wait any more."""
        self._queue.remove(turn.person, turn)

    def put_back(self, turn: "Turn") -> None:
        """`turn` was refused, and waits again."""
        self._queue.put_back(turn.person, turn)

    def back(self, let_in: bool) -> None:
        """One that had gone ahead was `let_in`, or came back."""
        self._ahead -= 1
        self._width += let_in
        self.release()


class Turn:
    """One request in the line."""

    def __init__(self, line: Line, person: str, deadline: float) -> None:
        self.person = person
        self._line = line
        self._deadline = deadline
        self._loop = asyncio.get_running_loop()
        self._call: asyncio.Future[Call] | None = None
        self._left = False
        self._quiet: asyncio.TimerHandle | None = None

    async def come(self) -> Call:
        """Wait for this one's turn. After anything but `GO` it stands in the line no more."""
        if self._left or not self._line.opens_by(self._deadline):
            self.over()
            return Call.LEFT if self._left else Call.LATE
        self._call = self._loop.create_future()
        timer = self._loop.call_at(self._deadline, self._end, Call.LATE)
        self._line.release()
        try:
            return await self._call
        except asyncio.CancelledError:
            self.over()
            raise
        finally:
            timer.cancel()

    def go(self) -> None:
        """It is this one's turn."""
        self._quiet = self._loop.call_later(QUIET_SECONDS, self.let_in)
        if self._call is not None:
            self._call.set_result(Call.GO)

    def leave(self) -> None:
        """Nobody waits for this one any more."""
        self._left = True
        self._end(Call.LEFT)

    def let_in(self) -> None:
        """OpenRouter has taken the request: there may be room for more."""
        self._came_back(True)

    def refused(self, delay: float | None) -> None:
        """There was no room: the line closes, and this one waits again."""
        self._line.close(delay)
        self._line.put_back(self)
        self._came_back(False)

    def over(self) -> None:
        """Whatever came of it: it holds up nobody."""
        self._line.forget(self)
        self._came_back(False)

    def _end(self, call: Call) -> None:
        if self._call is not None and not self._call.done():
            self._line.forget(self)
            self._call.set_result(call)

    def _came_back(self, let_in: bool) -> None:
        if self._quiet is not None:
            self._quiet.cancel()
            self._quiet = None
            self._line.back(let_in)
