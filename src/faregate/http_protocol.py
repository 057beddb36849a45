"""HTTP/1.1 as uvicorn speaks it, with an end to what a stranger may send and a way to part from clients kindly.

Uvicorn's protocol bounds neither the size of a request's head nor its time, and loses the body of a request that
offers another protocol.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import httptools
import msgspec
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from faregate.http_wire import EXTENSION, Wire

_LINGER_SECONDS = 1.0
_LINGER_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may take before its request is understood."""

    head_bytes: int = 64 * 1024
    """Request line and headers; also what is neither head nor content: trailers, the extensions of chunks."""
    head_seconds: float = 30.0
    """From the first byte of a request to the end of its headers."""
    body_seconds: float = 60.0
    """From one piece of a body to the next."""


class State(ServerState):
    """What the connections of one server share."""

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self.limits = limits
        self.stopping = False


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    server_state: State

    def __init__(
        self,
        config: Config,
        server_state: State,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = server_state.limits
        self._within: Literal["nothing", "head", "body"] = "nothing"
        # Bytes since the last that were of use: an upper bound of what the parser may be holding.
        self._idle_bytes = 0
        self._since = 0.0
        # One timer for a connection, not for a piece: it looks at `_since` when it fires.
        self._patience: asyncio.TimerHandle | None = None
        self._refused = False
        self.gone = False
        """Whether nothing that is written reaches the client any more."""
        self.on_gone: Callable[[], None] | None = None
        """Called when the client leaves while it is answered by a `Wire`."""

    @property
    def idle(self) -> bool:
        """Whether no request is being answered."""
        # Uvicorn's annotation leaves out that there is none before the first request.
        return self.cycle is None or self.cycle.response_complete  # type: ignore[redundant-expr]

    def retire(self) -> None:
        """The server is about to stop: say so in the answer, where it has not begun."""
        if not self.idle and not self.cycle.response_started:
            self.cycle.keep_alive = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Who connects and sends nothing is as idle as who has been answered.
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        super().connection_lost(exc)
        if self.on_gone is not None:
            self.on_gone()
            self.on_gone = None
        self._unset_keepalive_if_required()
        if self._patience is not None:
            self._patience.cancel()

    def data_received(self, data: bytes) -> None:
        self._idle_bytes += len(data)
        if self._refused:
            if self._idle_bytes > _LINGER_BYTES:
                self.transport.abort()
            return
        if self.transport.is_closing():
            return
        try:
            self._feed(data)
        except httptools.HttpParserError:
            if not self._refused:
                self.logger.warning("Invalid HTTP request received.")
                self._refuse(400, "invalid_request", "This is not a valid HTTP/1.1 request.")
            return
        if self._idle_bytes > self._limits.head_bytes:
            self._refuse_size()
        elif self._within != "nothing":
            if self._within == "body":
                self._since = self.loop.time()
            if self._patience is None:
                self._patience = self.loop.call_later(self._limits.head_seconds, self._look)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._unset_keepalive_if_required()
        self._within = "head"
        self._since = self.loop.time()

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise httptools.HttpParserError("There is no tunnel here.")
            return
        for name, value in self.headers:
            # Another coding is not undone here, and HTTP/1.0 has none (RFC 9112, 6.1).
            if name == b"transfer-encoding" and (
                value.strip().lower() != b"chunked" or self.parser.get_http_version() == "1.0"
            ):
                raise httptools.HttpParserError("The body is in a form that is not read here.")
        if self._idle_bytes > self._limits.head_bytes and len(self._head()) > self._limits.head_bytes:
            self._refuse_size()
            raise httptools.HttpParserError("The head is too large.")
        # It may have been set since the first byte: an earlier answer ended meanwhile.
        self._unset_keepalive_if_required()
        super().on_headers_complete()
        if self.server_state.stopping:
            self.cycle.keep_alive = False
        if self.scope["method"] != "HEAD" and self.scope["http_version"] in ("1.1", "1.0"):
            self.scope["extensions"] = {EXTENSION: Wire(self, self.cycle)}  # type: ignore[dict-item]
        # Trailers go to a list of their own. They are not headers (RFC 9110, 6.5.1): least of all those of identity.
        self.headers = []
        self._within = "body"
        self._idle_bytes = 0

    def on_body(self, body: bytes) -> None:
        self._idle_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        self._within = "nothing"
        self._idle_bytes = 0

    def _feed(self, data: bytes) -> None:
        """An offer of another protocol is declined by serving the request as it stands (RFC 9110, 7.8).

        The parser takes everything behind such a head for the other protocol; so it is given the head without the
        offer, and then the rest.
        """
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                head = self._head()
                # Of a connection that is to be closed behind this request, the old one would read nothing more.
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                self.parser.feed_data(head)
                data = data[offer.args[0] :]
            else:
                return

    def _head(self) -> bytes:
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [b"%b: %b" % (name, value) for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _look(self) -> None:
        """Cut a client that has let its time pass. It has all the time in which it is we who do not read on."""
        self._patience = None
        if self._within == "nothing" or self.transport.is_closing():
            return
        now = self.loop.time()
        answering = not self.idle and (self._within == "head" or self.cycle.waiting_for_100_continue)
        if answering or self.flow.read_paused:
            self._since = now
        allowed = self._limits.head_seconds if self._within == "head" else self._limits.body_seconds
        left = self._since + allowed - now
        if left > 0:
            self._patience = self.loop.call_later(left, self._look)
        elif self._within == "head":
            self._refuse(408, "request_timeout", f"The request's headers did not arrive within {allowed:.0f} seconds.")
        else:
            self._refuse(408, "request_timeout", f"Nothing of the request's body arrived for {allowed:.0f} seconds.")

    def _refuse_size(self) -> None:
        limit = self._limits.head_bytes // 1024
        self._refuse(
            431,
            "headers_too_large",
            f"The request's headers are larger than {limit} KB, which is the most that is accepted.",
        )

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Answer in OpenAI's shape, if it is this request's turn to be answered, and close."""
        if self._within == "body":
            turn = not (self.pipeline or self.cycle.response_started)
        else:
            turn = self.idle
        self._refused = True
        self._within = "nothing"
        if not turn:
            self.transport.abort()
            return
        if not self.idle:
            # As when the connection is lost: the application is told, and says no more.
            self.gone = True
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        error = {"message": message, "type": "invalid_request_error", "code": code, "param": None}
        body = msgspec.json.encode({"error": error})
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        lines = [b"%b: %b\r\n" % header for header in headers]
        self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", body]))
        # To close with bytes unread would reset the connection, and the answer with it.
        self.transport.write_eof()
        self._idle_bytes = 0
        self._unset_keepalive_if_required()
        if self._patience is not None:
            self._patience.cancel()
        self._patience = self.loop.call_later(_LINGER_SECONDS, self.transport.abort)
