"""One connection to Redis and the calls under way on it: written together, answered in their order, timed.

redis-py opens the connection; from then on its transport is ours. Calls are written straight to it and replies parsed
where they arrive: with a reader and a writer between, each reply costs several turns of the event loop.
"""

import asyncio
import time
from asyncio import Future, Handle, Task
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import msgspec
from hiredis import Reader, pack_command
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import InvalidResponse, ResponseError

from faregate.ledger.port import LedgerAway
from faregate.ledger.redis.refusals import CallTimeout, ConnectionLost, Meaning, NotSent, meaning, said
from faregate.ledger.redis.scripts import Script

Part = bytes | str | int | float

_LATE = 0.005
_LENIENCE = 4
# One turn of the loop polls, one tells us; uvloop polls after the calls of a turn.
_TURNS = 3
_INCOMPLETE = object()


class Call(msgspec.Struct, eq=False):
    """One command on its way. `sent_at` is by the monotonic clock."""

    future: "Future[Any]"
    packed: bytes
    script: Script | None
    sent_at: float = 0.0


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


class Pipe(asyncio.Protocol):
    """One connection and the calls under way on it."""

    def __init__(self, owner: Owner, connection: AbstractConnection, where: str, call_timeout: float) -> None:
        """`where` is the server, for people. `call_timeout` is how many seconds it may be silent."""
        self._owner = owner
        self._where = where
        self._patience = call_timeout
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._reader = Reader(protocolError=InvalidResponse, replyError=ResponseError, notEnoughData=_INCOMPLETE)
        self._sent: deque[Call] = deque()
        self._replies = 0
        self._refusals = 0
        self._rung = False
        self._full = False
        self._retired = False
        self._timer: Handle | None = None
        self._closing: Task[None] | None = None
        self._transport = self._taken_over(connection)
        self.ring()

    @property
    def under_way(self) -> int:
        return len(self._sent)

    @property
    def answered(self) -> bool:
        """It did something for us."""
        return self._replies > self._refusals

    def ring(self) -> None:
        """There is something to send."""
        if not self._rung:
            self._rung = True
            self._loop.call_soon(self._send)

    def end(self, kind: type[LedgerAway], why: str) -> None:
        """Fail what is under way, and close the connection."""
        if self._closing is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
        calls, self._sent = self._sent, deque()
        if kind is CallTimeout:
            # Whoever is silent may not read either: to close in order would wait until it does.
            self._transport.abort()
        self._closing = self._loop.create_task(self._close())
        fail(calls, kind, why)
        self._owner.ended(self, why, kind, in_use=bool(calls))

    async def closed(self) -> None:
        """Wait until the connection, which was ended, is closed."""
        if self._closing is not None:
            await self._closing

    # What the transport calls

    def data_received(self, data: bytes) -> None:
        if self._closing is not None:
            return
        reader, sent = self._reader, self._sent
        reader.feed(data)
        try:
            while (reply := reader.gets()) is not _INCOMPLETE:
                if not sent:
                    self.end(ConnectionLost, f"{self._where} sent a reply that nobody had asked for.")
                    return
                self._replies += 1
                call = sent.popleft()
                if isinstance(reply, ResponseError):
                    self._refusals += 1
                    self._refuse(call, reply)
                elif not call.future.done():
                    call.future.set_result(reply)
        except InvalidResponse as garbled:
            self._lose(garbled)
        if self._retired and not sent:
            self.end(NotSent, "")

    def eof_received(self) -> None:
        self._lose("the server closed it")

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(exc or "it was closed")

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self.ring()

    def _taken_over(self, connection: AbstractConnection) -> asyncio.Transport:
        # redis-py has no way to hand a connection over; its streams are left with nothing to read or write.
        stream, writer = connection._reader, connection._writer  # noqa: SLF001
        transport: asyncio.Transport = writer.transport  # type: ignore[union-attr, assignment] # it is connected
        transport.set_protocol(self)
        # What came before is not told again. Who made us learns of it when it knows us.
        if stream.at_eof() or transport.is_closing():  # type: ignore[union-attr]
            self._loop.call_soon(self.eof_received)
        return transport

    async def _close(self) -> None:
        await self._connection.disconnect(nowait=True)
        self._owner.forget(self)

    def _send(self) -> None:
        self._rung = False
        # Once it has ended, what is unsent is for the next connection, even if we were rung for before.
        if self._full or self._retired or self._closing is not None:
            return
        calls = self._owner.take_unsent()
        if not calls:
            return
        now = time.monotonic()
        for call in calls:
            call.sent_at = now
        self._sent.extend(calls)
        if self._timer is None:
            self._watch(self._patience)
        self._owner.writes += 1
        self._transport.write(calls[0].packed if len(calls) == 1 else b"".join([call.packed for call in calls]))

    def _lose(self, what: Exception | str) -> None:
        self.end(ConnectionLost, f"The connection to {self._where} was lost: {what}")

    def _refuse(self, call: Call, error: ResponseError) -> None:
        what = meaning(error)
        if what is Meaning.UNKNOWN_SCRIPT and call.script is not None:
            # It knows the script once it has run it.
            if not call.future.done():
                call.packed = by_source(call.packed, call.script)
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


def by_source(command: bytes, script: Script) -> bytes:
    """The call of a script by its name, as one that brings all of it."""
    by_name, whole = packed("EVALSHA", script.sha), packed("EVAL", script.source)
    return command.replace(by_name.removeprefix(b"*2\r\n"), whole.removeprefix(b"*2\r\n"), 1)


class Opening:
    """How calls of a script begin that differ in their last three arguments alone: packed once for all of them."""

    __slots__ = ("_packed", "script")

    def __init__(self, script: Script, keys: Sequence[bytes], args: Sequence[Part]) -> None:
        """`args` are all arguments but the last three."""
        self.script = script
        whole = packed("EVALSHA", script.sha, len(keys), *keys, *args, *(b"", b"", b""))
        self._packed = whole.removesuffix(3 * b"$0\r\n\r\n")

    def closed(self, first: bytes, second: bytes, third: bytes) -> bytes:
        """The call with these arguments at its end."""
        return b"%b$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
            self._packed,
            len(first),
            first,
            len(second),
            second,
            len(third),
            third,
        )


def fail(calls: Iterable[Call], kind: type[LedgerAway], why: str) -> None:
    for call in calls:
        if not call.future.done():
            call.future.set_exception(kind(why))
