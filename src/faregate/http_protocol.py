"""HTTP/1.1 as uvicorn speaks it, with an end to what a stranger may send and a way to part from clients kindly.

Uvicorn's protocol bounds neither the size of a request's head nor its time, and loses the body of a request that
offers another protocol. It also sets a timer for each request, and asks of each what our server has not: another root,
web sockets, a limit of connections.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal
from urllib.parse import unquote

import httptools
import msgspec
from uvicorn._types import HTTPScope
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from faregate.http_wire import EXTENSION, Wire

_LINGER_SECONDS = 1.0
_LINGER_BYTES = 1024 * 1024
_TELLING = frozenset({b"transfer-encoding", b"expect"})
"""The headers that say how a body comes."""


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
    cycle: Wire

    def __init__(
        self,
        config: Config,
        server_state: State,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = server_state.limits
        self._allowed = {
            # Who connects and sends nothing is as idle as who has been answered.
            "nothing": config.timeout_keep_alive,
            "head": self._limits.head_seconds,
            "body": self._limits.body_seconds,
        }
        self._within: Literal["nothing", "head", "body"] = "nothing"
        # Bytes since the last that were of use: an upper bound of what the parser may be holding.
        self._idle_bytes = 0
        self._since = 0.0
        # One timer for a connection, not for a request or a piece: it looks at `_since` when it fires.
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
        self._since = self.loop.time()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        super().connection_lost(exc)
        if self.on_gone is not None:
            self.on_gone()
            self.on_gone = None
        if self._patience is not None:
            self._patience.cancel()
        # They know each other. Hundreds of connections that end together would keep the garbage collector busy, and
        # everybody waiting, for tens of milliseconds.
        self.cycle = None  # type: ignore[assignment]
        self.pipeline.clear()

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
        elif self._within == "body":
            self._since = self.loop.time()

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self._within = "head"
        self._since = self.loop.time()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        parser = self.parser
        if parser.should_upgrade():
            if parser.get_method() == b"CONNECT":
                raise httptools.HttpParserError("There is no tunnel here.")
            return
        version = parser.get_http_version()
        expect_100_continue = False
        for name, value in self.headers:
            if name not in _TELLING:
                continue
            # Another coding is not undone here, and HTTP/1.0 has none (RFC 9112, 6.1).
            if name == b"transfer-encoding" and (value.strip().lower() != b"chunked" or version == "1.0"):
                raise httptools.HttpParserError("The body is in a form that is not read here.")
            if name == b"expect" and value.lower() == b"100-continue":
                expect_100_continue = True
        if self._idle_bytes > self._limits.head_bytes and len(self._head()) > self._limits.head_bytes:
            self._refuse_size()
            raise httptools.HttpParserError("The head is too large.")
        before, state, scope = self.cycle, self.server_state, self._scope(version)
        self.cycle = wire = Wire(
            self,
            scope,
            state.default_headers,
            expect_100_continue=expect_100_continue,
            keep_alive=version != "1.0" and parser.should_keep_alive() and not state.stopping,
        )
        if scope["method"] != "HEAD" and version in ("1.1", "1.0"):
            scope["extensions"] = {EXTENSION: wire}  # type: ignore[dict-item]
        # Trailers go to a list of their own. They are not headers (RFC 9110, 6.5.1): least of all those of identity.
        self.headers = []
        self._within = "body"
        self._idle_bytes = 0
        # Uvicorn's annotation leaves out that there is none before the first request.
        if before is None or before.response_complete:  # type: ignore[redundant-expr]
            self._start_asgi_task(wire, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((wire, self.app))

    def on_body(self, body: bytes) -> None:
        self._idle_bytes = 0
        cycle = self.cycle
        if not cycle.response_complete:
            cycle.take(body)
            if len(cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        cycle = self.cycle
        if not cycle.response_complete:
            cycle.more_body = False
            cycle.tell()
        self._within = "nothing"
        self._idle_bytes = 0

    def on_response_complete(self) -> None:
        if self.transport.is_closing():
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._within == "nothing":
            self._since = self.loop.time()

    def _scope(self, version: str) -> HTTPScope:
        method = self.parser.get_method().decode()
        path, raw_path, query = _target(self.url)
        scope: HTTPScope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme or "http",
            "root_path": "",
            "method": method,
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": self.headers,
        }
        return scope

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
        if self.transport.is_closing():
            return
        now = self.loop.time()
        answering = not self.idle and (self._within != "body" or self.cycle.waiting_for_100_continue)
        if answering or self.flow.read_paused:
            self._since = now
        allowed = self._allowed[self._within]
        left = self._since + allowed - now
        if left > 0:
            # It may wait for something else by then, for which it has less time than for this.
            self._patience = self.loop.call_later(min(left, *self._allowed.values()), self._look)
        elif self._within == "nothing":
            self.transport.close()
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
            self.cycle.tell()
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
        if self._patience is not None:
            self._patience.cancel()
        self._patience = self.loop.call_later(_LINGER_SECONDS, self.transport.abort)


@lru_cache(maxsize=128)
def _target(url: bytes) -> tuple[str, bytes, bytes]:
    """Path, path as it was spelled, and query. Raises `HttpParserError`, and UnicodeDecodeError."""
    parsed = httptools.parse_url(url)
    return unquote(parsed.path.decode("ascii")), parsed.path, parsed.query or b""
