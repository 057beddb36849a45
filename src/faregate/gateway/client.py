"""The client's side of an exchange: what is sent to it, and the moment it leaves."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from faregate.gateway.errors import ApiError
from faregate.http_wire import Wire

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
RawHeaders = Iterable[tuple[bytes, bytes]]

AWAY = (b"x-faregate-ledger", b"away")
"""The shared ledger did not answer when this answer began."""
UNCHECKED = (b"x-faregate-ledger", b"unchecked")
"""The request was admitted without a hold, because the shared ledger did not answer."""


class Client:
    """Sends one answer: on its wire where the server lends one, else over ASGI.

    Sending more to a client that has gone, or has its whole answer, does nothing.
    """

    unchecked = False
    gone = False
    status = 0
    _ended = False
    _watch: asyncio.Task[None] | None = None
    _on_gone: Callable[[], None] | None = None

    def __init__(
        self,
        request_id: str,
        receive: Receive,
        send: Send,
        patience: float,
        ledger_away: Callable[[], bool],
        wire: Wire | None = None,
    ) -> None:
        """A client that reads nothing for `patience` seconds, while there is more for it, counts as gone.

        It is told in a header when its answer begins while `ledger_away`, or when its request is `unchecked`.
        """
        self._patience = patience
        self._receive = receive
        self._send = send
        self._wire = wire
        self.request_id = request_id
        self._id_header = (b"x-request-id", request_id.encode())
        self._ledger_away = ledger_away

    def watch(self) -> None:
        """Begin to listen for the client leaving. The request's body must have been received."""
        if self._wire is not None:
            self._wire.on_gone(self._leave)
        else:
            self._watch = asyncio.create_task(self._wait_until_gone())

    def on_gone(self, callback: Callable[[], None]) -> None:
        """Call `callback` when the client leaves, at once if it has."""
        self._on_gone = callback
        if self.gone:
            callback()

    async def start(self, status: int, content_type: bytes, headers: RawHeaders = ()) -> None:
        """Send status and headers. On a wire they leave with what is sent next, or with `flush`."""
        if self.status:
            return
        await self._begin(status, self._headers(content_type, headers))

    def flush(self) -> None:
        """Let what was started leave, where nothing else is there to be sent."""
        if self._wire is not None and self.waiting:
            self._wire.flush()

    def write(self, data: bytes) -> bool:
        """Send a piece of the body at once, if that can be done without waiting; False where `send` has to."""
        wire = self._wire
        # What `waiting` says, asked for every event of a stream.
        return not (wire is None or self.gone or self._ended) and wire.pass_on(data)

    def send_behind(self, data: bytes, *, last: bool) -> bool:
        """Send a piece of the body, the `last` or not, behind what this turn of the loop asks of the ledger.

        The ledger has it first then, and nobody waits for its reply. False, and nothing is sent, where that cannot be
        done without waiting for the client: then `send` has to.
        """
        wire = self._wire
        if wire is None or not self.waiting or not wire.ready:
            return False
        wire.write(data)
        if last:
            self._ended = True
            wire.end_behind()
        else:
            wire.flush_behind()
        return True

    async def send(self, data: bytes) -> None:
        """Send a piece of the body, as fast as the client reads."""
        if not data or not self.waiting:
            return
        if self._wire is None:
            try:
                async with asyncio.timeout(self._patience):
                    await self._send({"type": "http.response.body", "body": data, "more_body": True})
            except TimeoutError:
                self._leave()
            return
        if not self._wire.ready:
            await self._catch_up(self._wire)
        if self.waiting:
            self._wire.write(data)
            self._wire.flush_soon()

    def finish(self) -> None:
        """As `end`, at once, where something was sent by `send_behind`."""
        if self._wire is not None and self.waiting:
            self._ended = True
            self._wire.end()

    async def end(self) -> None:
        """The body is complete."""
        if not self._ended:
            self._ended = True
            if self.gone:
                return
            if self._wire is not None:
                self._wire.end()
            else:
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def answer(self, status: int, content_type: bytes, body: bytes, headers: RawHeaders = ()) -> None:
        """Send a whole answer. Nothing is sent when an answer has begun already."""
        if self.status:
            return
        await self._begin(status, self._whole(content_type, body, headers), chunked=False)
        self._ended = True
        if self.gone:
            return
        if self._wire is not None:
            self._wire.write(body)
            self._wire.end()
        else:
            await self._send({"type": "http.response.body", "body": body, "more_body": False})

    def answer_behind(self, status: int, content_type: bytes, body: bytes) -> bool:
        """As `answer`, in the manner of `send_behind`."""
        wire = self._wire
        if wire is None or self.status or not self.waiting or not wire.ready:
            return False
        wire.begin(status, self._whole(content_type, body), chunked=False)
        self.status = status
        return self.send_behind(body, last=True)

    async def fail(self, error: ApiError) -> None:
        """Send an error; as the last event where a stream has begun."""
        if self.status:
            await self.send(error.event())
            await self.end()
            return
        headers = [(name.encode(), value.encode()) for name, value in error.headers.items()]
        await self.answer(error.status, b"application/json", error.body(), headers)

    @property
    def waiting(self) -> bool:
        """Whether somebody is there who does not have the whole answer yet."""
        return not self.gone and not self._ended

    def close(self) -> None:
        """The exchange is over: stop listening. What was to be sent behind something else is sent now."""
        if self._ended and self._wire is not None:
            self._wire.end()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        # Who is called knows the client, too: nothing of a request should wait for the garbage collector.
        self._on_gone = None

    def _whole(self, content_type: bytes, body: bytes, headers: RawHeaders = ()) -> list[tuple[bytes, bytes]]:
        return self._headers(content_type, [(b"content-length", b"%d" % len(body)), *headers])

    def _headers(self, content_type: bytes, headers: RawHeaders) -> list[tuple[bytes, bytes]]:
        sent = [(b"content-type", content_type), self._id_header, *headers]
        if self.unchecked:
            sent.append(UNCHECKED)
        elif self._ledger_away() and AWAY not in sent:
            sent.append(AWAY)
        return sent

    async def _begin(self, status: int, headers: list[tuple[bytes, bytes]], *, chunked: bool = True) -> None:
        wire = self._wire
        if wire is None:
            if not self.gone:
                await self._send({"type": "http.response.start", "status": status, "headers": headers})
        else:
            # Whole answers wait, too: those to a client that asks on and on, and reads nothing, would fill the memory.
            if not wire.ready:
                await self._catch_up(wire)
            if not self.gone:
                wire.begin(status, headers, chunked=chunked)
        self.status = status

    async def _catch_up(self, wire: Wire) -> None:
        """Wait until who is answered on `wire` has read what was sent before; by ASGI each message waits for that."""
        try:
            async with asyncio.timeout(self._patience):
                await wire.drained()
        except TimeoutError:
            wire.abandon()
            self._leave()

    async def _wait_until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._ended:
            self._leave()

    def _leave(self) -> None:
        if self.gone:
            return
        self.gone = True
        if self._on_gone is not None:
            self._on_gone()
