"""One connection to Redis and the calls under way on it: written together, answered in their order, timed."""

import asyncio
import time
from asyncio import Future, Handle, Task
from collections import deque
from collections.abc import Iterable
from typing import Any, Protocol

from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from faregate.ledger.port import LedgerAway
from faregate.ledger.redis.refusals import REPLIES, CallTimeout, ConnectionLost, Meaning, NotSent, meaning, said
from faregate.ledger.redis.scripts import Script

Part = bytes | str | int | float

_LATE = 0.005
_LENIENCE = 4
# One turn of the loop polls, one feeds the stream, one wakes the reader; uvloop polls after the calls of a turn.
_TURNS = 4


class Call:
    __slots__ = ("future", "packed", "rest", "script", "sent_at")

    def __init__(self, future: "Future[Any]", packed: bytes, script: Script | None, rest: tuple[Part, ...]) -> None:
        self.future = future
        self.packed = packed
        self.script = script
        self.rest = rest
        self.sent_at = 0.0


class Owner(Protocol):
    """Who makes the calls."""

    writes: int

    def take_unsent(self) -> list[Call]:
        """The calls to send now."""
        ...

    def again(self, call: Call) -> None:
        """Send `call` once more: it was not done."""
        ...

    def ended(self, pipe: "Pipe", why: str, kind: type[LedgerAway], *, in_use: bool) -> None:
        """The connection must not be used any more. `in_use` if calls were under way on it.

        `kind` is what those calls raise. With NotSent the server has refused: it may happen to others, too.
        """
        ...

    def forget(self, pipe: "Pipe") -> None:
        """The connection is closed."""
        ...


class Pipe:
    """One connection and the calls under way on it."""

    def __init__(self, owner: Owner, connection: AbstractConnection, where: str, call_timeout: float) -> None:
        """`where` is the server, for people. `call_timeout` is how many seconds it may be silent."""
        self._owner = owner
        self._where = where
        self._patience = call_timeout
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._sent: deque[Call] = deque()
        self._replies = 0
        self._refusals = 0
        self._retired = False
        self._timer: Handle | None = None
        self._bell: Future[None] | None = None
        self._closing: Task[None] | None = None
        self._reading = self._loop.create_task(self._read())
        self._writing = self._loop.create_task(self._write())

    @property
    def under_way(self) -> int:
        return len(self._sent)

    @property
    def answered(self) -> bool:
        """It did something for us."""
        return self._replies > self._refusals

    def ring(self) -> None:
        """There is something to send."""
        if self._bell is not None and not self._bell.done():
            self._bell.set_result(None)

    def end(self, kind: type[LedgerAway], why: str) -> None:
        """Fail what is under way, and close the connection."""
        if self._closing is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
        calls, self._sent = self._sent, deque()
        self._closing = self._loop.create_task(self._close())
        fail(calls, kind, why)
        self._owner.ended(self, why, kind, in_use=bool(calls))

    async def closed(self) -> None:
        """Wait until the connection, which was ended, is closed."""
        if self._closing is not None:
            await self._closing

    async def _close(self) -> None:
        self._reading.cancel()
        self._writing.cancel()
        await asyncio.wait({self._reading, self._writing})
        await self._connection.disconnect(nowait=True)
        self._owner.forget(self)

    async def _write(self) -> None:
        try:
            # Once it has ended, what is unsent is for the next connection, even if we were woken before.
            while not self._retired and self._closing is None:
                calls = self._owner.take_unsent()
                if not calls:
                    self._bell = self._loop.create_future()
                    await self._bell
                    continue
                now = time.monotonic()
                for call in calls:
                    call.sent_at = now
                self._sent.extend(calls)
                if self._timer is None:
                    self._watch(self._patience)
                self._owner.writes += 1
                await self._connection.send_packed_command([call.packed for call in calls], check_health=False)
        except (RedisError, OSError) as lost:
            self._lose(lost)

    async def _read(self) -> None:
        read = self._connection.read_response
        try:
            while self._sent or not self._retired:
                try:
                    reply = await read(disconnect_on_error=False)
                except REPLIES as error:
                    self._replies += 1
                    self._refusals += 1
                    self._refuse(self._sent.popleft(), error)
                else:
                    self._replies += 1
                    future = self._sent.popleft().future
                    if not future.done():
                        future.set_result(reply)
        except IndexError:
            self.end(ConnectionLost, f"{self._where} sent a reply that nobody had asked for.")
        except (RedisError, OSError) as lost:
            self._lose(lost)
        else:
            self.end(NotSent, "")

    def _lose(self, lost: Exception) -> None:
        self.end(ConnectionLost, f"The connection to {self._where} was lost: {lost}")

    def _refuse(self, call: Call, error: Exception) -> None:
        what = meaning(error)
        if what is Meaning.UNKNOWN_SCRIPT and call.script is not None:
            # It knows the script once it has run it.
            if not call.future.done():
                call.packed = packed("EVAL", call.script.source, *call.rest)
                self._owner.again(call)
        elif what is Meaning.ELSEWHERE:
            why = f"{self._where} is not the server to ask: {said(error)}. Check REDIS_URL if this stays so."
            fail((call,), NotSent, why)
            self._retire(why)
        elif what is Meaning.UNABLE:
            fail((call,), LedgerAway, f"{self._where} cannot serve: {said(error)}. Check its state and its ACL.")
        elif not call.future.done():
            call.future.set_exception(error)

    def _retire(self, why: str) -> None:
        """Send nothing more on it. What is under way is still answered, so that its outcome is known."""
        if not self._retired:
            self._retired = True
            self.ring()
            self._owner.ended(self, why, NotSent, in_use=True)

    def _watch(self, seconds: float) -> None:
        self._timer = self._loop.call_later(max(seconds, 0.001), self._check, time.monotonic() + seconds)

    def _check(self, due: float) -> None:
        self._timer = None
        if not self._sent:
            return
        now = time.monotonic()
        silent = now - self._sent[0].sent_at
        if silent < self._patience:
            self._watch(self._patience - silent)
        elif now - due > _LATE and silent < self._patience * _LENIENCE:
            # We were late ourselves, and Redis may be on this machine, as short of time as we are.
            self._watch(min(now - due, self._patience))
        else:
            self._listen(_TURNS, self._replies)

    def _listen(self, turns: int, replies: int) -> None:
        """Let the loop read what has arrived before Redis is taken for silent."""
        if self._replies != replies:
            self._watch(self._patience / 10)
        elif turns:
            self._timer = self._loop.call_soon(self._listen, turns - 1, replies)
        else:
            self.end(
                CallTimeout,
                f"{self._where} did not answer within {self._patience * 1000:.0f} ms. Check how busy it "
                "is, and the network.",
            )


def packed(*parts: Part) -> bytes:
    """A command in the protocol's form. Raises TypeError for what is not a part."""
    command: bytes = pack_command(parts)  # type: ignore[arg-type] # its stub says: one part
    return command


def fail(calls: Iterable[Call], kind: type[LedgerAway], why: str) -> None:
    for call in calls:
        if not call.future.done():
            call.future.set_exception(kind(why))
