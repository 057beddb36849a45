"""An answer written straight to its connection: what `HttpProtocol` lends to applications of ours.

ASGI asks for one `await send()` for each piece of an answer, with a dictionary in it. Here a piece is written in the
turn of the loop in which it arrived, and what leaves in one turn leaves in one write.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from uvicorn._types import HTTPScope
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

EXTENSION = "faregate.wire"
"""Where a `Wire` is in the `extensions` of a scope."""

_SHORT = 1024
_SIZE_LINES = tuple(b"%x\r\n" % size for size in range(_SHORT))
"""What a chunk begins with, for the sizes that an event of a stream has."""

_LINE = b": ".join


class Server(Protocol):
    """The connection, as its wires see it."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    flow: FlowControl
    logger: logging.Logger
    gone: bool
    on_gone: Callable[[], None] | None

    def on_response_complete(self) -> None:
        """An answer has come to its end, and the connection stays."""


class Wire(RequestResponseCycle):
    """One request and its answer: by the messages of ASGI, as uvicorn does it, or written here.

    What is written when the client has gone is lost, as it is on any connection.
    """

    # What is so at the beginning of every request, and to its end for most.
    access_log = False
    disconnected = False
    body: bytes | bytearray = b""  # type: ignore[assignment]
    more_body = True
    response_started = False
    response_complete = False
    chunked_encoding: bool | None = None
    expected_content_length = 0
    _news: asyncio.Event | None = None
    _chunked = False
    _flushing = False

    def __init__(
        self,
        server: Server,
        scope: HTTPScope,
        default_headers: list[tuple[bytes, bytes]],
        *,
        expect_100_continue: bool,
        keep_alive: bool,
    ) -> None:
        # Not by way of uvicorn's own: it asks for an `Event`, and for much that is the same for each request.
        self.scope = scope
        self.transport = server.transport
        self.flow = server.flow
        self.logger = server.logger
        self.default_headers = default_headers
        self.waiting_for_100_continue = expect_100_continue
        self.keep_alive = keep_alive
        self.on_response = server.on_response_complete
        self._server = server
        self._pending: list[bytes] = []

    @property
    def message_event(self) -> asyncio.Event:  # type: ignore[override]
        """Set while there is news for who receives. Of most requests nobody does: they are here as a whole."""
        if self._news is None:
            self._news = asyncio.Event()
            if self.body or not self.more_body or self.disconnected or self.response_complete:
                self._news.set()
        return self._news

    def tell(self) -> None:
        """There is news for who receives."""
        if self._news is not None:
            self._news.set()

    def take(self, piece: bytes) -> None:
        """A piece of the request's body has come."""
        if not self.body:
            # Most bodies are one piece: there is nothing to copy.
            self.body = piece
        elif isinstance(self.body, bytearray):
            self.body += piece
        else:
            self.body = bytearray(self.body) + piece
        self.tell()

    @property
    def ready(self) -> bool:
        """Whether the client keeps up with what is written."""
        return not self.flow.write_paused

    async def drained(self) -> None:
        """Wait until it has caught up, or has gone."""
        await self.flow.drain()

    def on_gone(self, callback: Callable[[], None]) -> None:
        """Call `callback` when the client leaves before the end of the answer; at once if it has.

        The request's body must have been received.
        """
        if self._server.gone:
            callback()
        else:
            self._server.on_gone = callback
            # The last of a large body may have paused it, and nobody receives any more: the leaving is to be read, too.
            if self.flow.read_paused:
                self.flow.resume_reading()

    def whole_body(self) -> bytes | None:
        """The request's body, where all of it is here; None where it has to be received.

        What is here is little: the connection is not read on from when 64 KB wait to be received.
        """
        if self.more_body or self.disconnected or self.waiting_for_100_continue or not self.body:
            return None
        body, self.body = bytes(self.body), b""
        if self.flow.read_paused:
            self.flow.resume_reading()
        return body

    def begin(self, status: int, headers: Iterable[tuple[bytes, bytes]], *, chunked: bool = True) -> None:
        """Status and headers; they leave with the first piece, or with `flush`.

        Without `chunked` there is a content-length among `headers`. To HTTP/1.0, which has no chunks (RFC 9112, 6.1),
        the end of the connection is the end of the answer. Raises ValueError for a line break in a header; then the
        answer has not begun.
        """
        chunked = chunked and self.scope["http_version"] != "1.0"
        lines = [*map(_LINE, self.default_headers), *map(_LINE, headers)]
        if not self.keep_alive:
            lines.append(b"connection: close")
        if chunked:
            lines.append(b"transfer-encoding: chunked")
        head = b"\r\n".join(lines)
        if not head.count(b"\r") == head.count(b"\n") == len(lines) - 1 or head.count(b"\0"):
            raise ValueError("a header of the answer has a line break in it")
        self.response_started = True
        self.waiting_for_100_continue = False
        self._chunked = chunked
        self._pending.append(b"%b%b\r\n\r\n" % (STATUS_LINE[status], head))

    def write(self, data: bytes) -> None:
        """A piece of the body. It leaves with the next `flush`."""
        if not self._chunked:
            self._pending.append(data)
        elif data:
            # An empty chunk would be the end.
            self._pending += (b"%x\r\n" % len(data), data, b"\r\n")

    def pass_on(self, data: bytes) -> bool:
        """A piece of the body, at once; False, and nothing is written, where the client does not keep up."""
        if self.flow.write_paused:
            return False
        if self._pending or not self._chunked:
            self.write(data)
            self.flush()
        elif not self._server.gone:
            size = len(data)
            line = _SIZE_LINES[size] if size < _SHORT else b"%x\r\n" % size
            self.transport.write(b"".join((line, data, b"\r\n")))
        return True

    def flush_soon(self) -> None:
        """Have what waits written before this turn of the loop is over, with what else it brings."""
        if not self._flushing:
            self._flushing = True
            self._server.loop.call_soon(self.flush)

    def flush_behind(self) -> None:
        """Have what waits written behind whatever this turn of the loop asks of others: they have it first."""
        call_soon = self._server.loop.call_soon
        call_soon(call_soon, self.flush)

    def end_behind(self) -> None:
        """As `end`, when `flush_behind` writes."""
        call_soon = self._server.loop.call_soon
        call_soon(call_soon, self.end)

    def end(self) -> None:
        """The answer is complete. Repeating changes nothing."""
        if self.response_complete:
            return
        if self._chunked:
            self._pending.append(b"0\r\n\r\n")
        self.flush()
        self._server.on_gone = None
        self.response_complete = True
        self.tell()
        if self._server.gone:
            return
        if not self.keep_alive:
            self.transport.close()
        self.on_response()

    def abandon(self) -> None:
        """Break the connection off, with what the client has not read: it reads nothing."""
        # Known at once: to the server the answer is not one that its application has forgotten to complete.
        self.disconnected = True
        self.transport.abort()

    def flush(self) -> None:
        """Write what waits."""
        self._flushing = False
        if self._pending:
            data = self._pending[0] if len(self._pending) == 1 else b"".join(self._pending)
            self._pending.clear()
            if not self._server.gone:
                self.transport.write(data)
