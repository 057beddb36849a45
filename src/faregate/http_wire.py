"""An answer written straight to its connection: what `HttpProtocol` lends to applications of ours.

ASGI asks for one `await send()` for each piece of an answer, with a dictionary in it. Here a piece is written in the
turn of the loop in which it arrived, and what leaves in one turn leaves in one write.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

EXTENSION = "faregate.wire"
"""Where a `Wire` is in the `extensions` of a scope."""


class Server(Protocol):
    """The connection, as its wires see it."""

    loop: asyncio.AbstractEventLoop
    gone: bool
    on_gone: Callable[[], None] | None


class Wire:
    """Writes one answer. What is written when the client has gone is lost, as it is on any connection."""

    __slots__ = ("_chunked", "_cycle", "_flow", "_flushing", "_pending", "_server", "_transport")

    def __init__(self, server: Server, cycle: RequestResponseCycle) -> None:
        self._server = server
        self._cycle = cycle
        self._flow = cycle.flow
        self._transport = cycle.transport
        self._pending: list[bytes] = []
        self._chunked = False
        self._flushing = False

    @property
    def ready(self) -> bool:
        """Whether the client keeps up with what is written."""
        return not self._flow.write_paused

    async def drained(self) -> None:
        """Wait until it has caught up, or has gone."""
        await self._flow.drain()

    def on_gone(self, callback: Callable[[], None]) -> None:
        """Call `callback` when the client leaves before the end of the answer; at once if it has.

        The request's body must have been received.
        """
        if self._server.gone:
            callback()
        else:
            self._server.on_gone = callback
            # The last of a large body may have paused it, and nobody receives any more: the leaving is to be read, too.
            self._flow.resume_reading()

    def begin(self, status: int, headers: Iterable[tuple[bytes, bytes]], *, chunked: bool = True) -> None:
        """Status and headers; they leave with the first piece, or with `flush`.

        Without `chunked` there is a content-length among `headers`. To HTTP/1.0, which has no chunks (RFC 9112, 6.1),
        the end of the connection is the end of the answer. Raises ValueError for a line break in a header; then the
        answer has not begun.
        """
        cycle = self._cycle
        chunked = chunked and cycle.scope["http_version"] != "1.0"
        lines = [STATUS_LINE[status]]
        lines += [b"%b: %b\r\n" % header for header in cycle.default_headers]
        lines += [b"%b: %b\r\n" % header for header in headers]
        if not cycle.keep_alive:
            lines.append(b"connection: close\r\n")
        if chunked:
            lines.append(b"transfer-encoding: chunked\r\n")
        head = b"".join(lines)
        if not head.count(b"\r") == head.count(b"\n") == len(lines) or b"\0" in head:
            raise ValueError("a header of the answer has a line break in it")
        cycle.response_started = True
        cycle.waiting_for_100_continue = False
        self._chunked = chunked
        self._pending.append(head + b"\r\n")

    def write(self, data: bytes) -> None:
        """A piece of the body. It leaves with the next `flush`."""
        if not self._chunked:
            self._pending.append(data)
        elif data:
            # An empty chunk would be the end.
            self._pending += (b"%x\r\n" % len(data), data, b"\r\n")

    def pass_on(self, data: bytes) -> bool:
        """A piece of the body, at once; False, and nothing is written, where the client does not keep up."""
        if self._flow.write_paused:
            return False
        if self._pending or not self._chunked:
            self.write(data)
            self.flush()
        elif not self._server.gone:
            self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    def flush_soon(self) -> None:
        """Have what waits written before this turn of the loop is over, with what else it brings."""
        if not self._flushing:
            self._flushing = True
            self._server.loop.call_soon(self.flush)

    def end(self) -> None:
        """The answer is complete."""
        cycle = self._cycle
        if self._chunked:
            self._pending.append(b"0\r\n\r\n")
        self.flush()
        self._server.on_gone = None
        cycle.response_complete = True
        cycle.message_event.set()
        if self._server.gone:
            return
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()

    def abandon(self) -> None:
        """Break the connection off, with what the client has not read: it reads nothing."""
        # Known at once: to the server the answer is not one that its application has forgotten to complete.
        self._cycle.disconnected = True
        self._transport.abort()

    def flush(self) -> None:
        """Write what waits."""
        self._flushing = False
        if self._pending:
            data = self._pending[0] if len(self._pending) == 1 else b"".join(self._pending)
            self._pending.clear()
            if not self._server.gone:
                self._transport.write(data)
