"""One HTTP/1.1 connection to upstream: writes a request, hands out the answer's bytes as they arrive.

Back-pressure: at most `HIGH_WATER` bytes of an answer wait here; then the transport is paused until the
reader has caught up.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from itertools import islice
from typing import cast

import httptools

HIGH_WATER = 256 * 1024
MAX_HEADER_BYTES = 64 * 1024
"""Bytes in a row that are no content: headers, trailers, the extensions of chunks. The parser keeps them in memory."""


ONE_WRITE = 64 * 1024
"""Bytes of a body below which to copy it costs less than a write of its own."""


class Flow(Enum):
    """Why an answer flows no further."""

    STOPPED = auto()
    """Who took it has to see to something first."""
    SILENT = auto()
    ENDED = auto()


class UpstreamFailure(Exception):
    """The exchange with upstream did not come to its end. What is known of its answer is in `exchange`."""

    def __init__(self, message: str, exchange: "Exchange | None" = None) -> None:
        super().__init__(message)
        self.exchange = exchange


class NotReached(UpstreamFailure):
    """No connection could be made: not one byte of the request has left."""


class NoAnswer(UpstreamFailure):
    """The connection ended before a single byte of the answer."""


class Cut(UpstreamFailure):
    """The answer began, and ended before its time or in a form that is not HTTP."""


class TooSlow(UpstreamFailure):
    """Upstream is connected and silent for longer than the time-out. It may still answer on `exchange`."""


class Connection(asyncio.Protocol):
    """A keep-alive connection that carries one exchange at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._closed = False
        self._exchange: Exchange | None = None
        self.idle_since = 0.0

    @property
    def reusable(self) -> bool:
        """True while the connection is clean: open, and with no bytes of an earlier answer about."""
        return (
            self._exchange is None
            and not self._closed
            and self._transport is not None
            and not self._transport.is_closing()
        )

    def start(self, request: bytes, body: bytes) -> "Exchange":
        """Send a request; its answer is read from the `Exchange`. Only on a `reusable` connection."""
        assert self._transport is not None  # noqa: S101 - set by connection_made, before anyone holds this object
        self._exchange = exchange = Exchange(self, self._loop)
        exchange.parser = httptools.HttpResponseParser(exchange)
        if len(body) < ONE_WRITE:
            self._transport.write(request + body)
        else:
            self._transport.write(request)
            self._transport.write(body)
        return exchange

    def finished(self, keep_alive: bool) -> None:
        """The exchange has been parsed to its end."""
        if self._exchange is not None:
            # They know each other: nothing of an answer should wait for the garbage collector.
            del self._exchange.parser
        self._exchange = None
        self.resume()
        if not keep_alive:
            self.close()

    def close(self) -> None:
        """End the connection at once; an answer under way is cut."""
        self._closed = True
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        """Stop reading from upstream."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read from upstream again."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            # Bytes that nobody asked for: whatever they are, the next answer cannot be trusted.
            self.close()
            return
        try:
            exchange.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not exchange.complete:
                exchange.fail(Cut(f"upstream sent what is not HTTP ({type(error).__name__})"))
            self.close()
            return
        if exchange.complete:
            self.finished(exchange.keep_alive)
        elif (sink := exchange.sink) is not None and exchange.pieces:
            exchange.idle_bytes = 0
            exchange.hand_on(sink)
        elif not exchange.keeps(len(data)):
            exchange.fail(Cut("upstream sent headers without end"))
            self.close()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        del exchange.parser
        if exc is None and exchange.until_close:
            exchange.end()
        elif exchange.received:
            exchange.fail(Cut("upstream closed the connection in the middle of its answer"))
        else:
            exchange.fail(NoAnswer("upstream closed the connection without an answer"))


class Exchange:
    """One answer: its status and headers, then its body in pieces. Also the parser's callbacks."""

    parser: httptools.HttpResponseParser

    def __init__(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        self.connection = connection
        self._loop = loop
        self.pieces: deque[bytes] = deque()
        """Of the body, those that nobody has taken yet."""
        # Of the parser's callbacks the one without code of ours: nothing has to be known of a piece before the whole
        # read is parsed.
        self.on_body = self.pieces.append
        self._counted = 0
        self._buffered = 0
        self._paused = False
        self._waiter: asyncio.Future[bool] | None = None
        self.on_end: Callable[[], None] | None = None
        """Told of the end of the answer, in the very turn of the loop in which it comes."""
        self.sink: Callable[[bytes], bool] | None = None
        """Who takes the pieces as they come. While there is somebody none waits, and upstream is not paused."""
        self._heard_at = 0.0
        self._failure: UpstreamFailure | None = None
        self._error: Exception | None = None
        self._started = False
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        """By lower-cased name; of several of one name the first."""
        self.idle_bytes = 0
        """How many have come in a row without a piece of the body among them."""
        self.complete = False
        self.keep_alive = False
        self.until_close = False

    def header(self, name: bytes) -> bytes | None:
        """The first header of this lower-cased name."""
        return self.headers.get(name)

    @property
    def received(self) -> bool:
        """Whether a single byte of the answer has come."""
        return self._started or self.idle_bytes > 0

    @property
    def has_more(self) -> bool:
        """Whether bytes have arrived that nobody has taken yet."""
        return bool(self.pieces)

    async def answered(self, timeout: float) -> None:
        """Wait at most `timeout` seconds for status and headers. Raises `UpstreamFailure`. Cancelled, it is aborted."""
        deadline = self._loop.time() + timeout
        heard = True
        while not self._started:
            if self._failure is not None:
                raise self._failure
            if not heard:
                raise TooSlow(f"upstream did not begin to answer within {timeout:g} s", self)
            try:
                heard = await self._wait(deadline - self._loop.time())
            except asyncio.CancelledError:
                self.abort()
                raise

    async def read(self, timeout: float) -> bytes:
        """All bytes that have arrived, waiting at most `timeout` seconds for the first; empty at the end.

        Raises `UpstreamFailure`, after every byte that came before the failure was handed out.
        """
        if not await self.ready(timeout):
            raise self.silent(timeout)
        return self.take()

    async def ready(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds for bytes, the end or a failure; whether there is something to `take`."""
        deadline = self._loop.time() + timeout
        while self._undecided():
            if not await self._wait(deadline - self._loop.time()):
                return not self._undecided()
        return True

    async def flow(self, sink: Callable[[bytes], bool], patience: float) -> Flow:
        """Hand all that arrives to `sink`, in the very turn of the loop in which it does, until that returns False.

        Returns at the end of the answer, too, and when upstream was silent for `patience` seconds. Raises
        `UpstreamFailure`, after every byte that came before the failure was handed out, and what `sink` raises.
        """
        self._heard_at = self._loop.time()
        while True:
            if self.pieces and not sink(self.take()):
                return Flow.STOPPED
            if self._failure is not None:
                raise self._failure
            if self.complete:
                return Flow.ENDED
            left = self._heard_at + patience - self._loop.time()
            if left <= 0:
                return Flow.SILENT
            self.sink = sink
            try:
                await self._wait(left)
            finally:
                stopped = self.sink is None
                self.sink = None
            if self._error is not None:
                raise self._error
            if stopped:
                return Flow.STOPPED

    def silent(self, seconds: float) -> TooSlow:
        """What to raise when nothing has come for so long."""
        return TooSlow(f"upstream was silent for {seconds:g} s in the middle of its answer", self)

    def take(self) -> bytes:
        """All bytes that have arrived; empty at the end. Only when `ready`. Raises as `read` does."""
        if self.pieces:
            return self._collected()
        if self._failure is not None:
            raise self._failure
        return b""

    def abort(self) -> None:
        """Leave: upstream sees its connection closed. A reader gets `Cut`."""
        if not self.complete:
            self.fail(Cut("the gateway ended the exchange"))
            self.connection.close()

    def _undecided(self) -> bool:
        return not self.pieces and not self.complete and self._failure is None

    def _collected(self) -> bytes:
        data = self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)
        self.pieces.clear()
        self._counted = self._buffered = 0
        if self._paused:
            self._paused = False
            if not self.complete:
                self.connection.resume()
        return data

    async def _wait(self, timeout: float) -> bool:
        """Sleep until something has happened; False if that took `timeout` seconds.

        By hand, as every request and every answer pass here: `asyncio.timeout` is several times the work.
        """
        waiter: asyncio.Future[bool] = self._loop.create_future()
        self._waiter = waiter
        timer = self._loop.call_later(max(0.0, timeout), _expire, waiter)
        try:
            return await waiter
        finally:
            timer.cancel()
            self._waiter = None

    def keeps(self, size: int) -> bool:
        """A read of `size` bytes has been parsed, and nobody took them; False where they are headers without end."""
        if not self._started:
            # Of a preface, which is nothing to anybody.
            self.pieces.clear()
        new = len(self.pieces) - self._counted
        if new:
            self.idle_bytes = 0
            self._counted += new
            self._buffered += sum(map(len, islice(reversed(self.pieces), new)))
            if self._buffered > HIGH_WATER and not self._paused:
                self._paused = True
                self.connection.pause()
        else:
            self.idle_bytes += size
            if self.idle_bytes > MAX_HEADER_BYTES:
                return False
        self._heard()
        return True

    def hand_on(self, sink: Callable[[bytes], bool]) -> None:
        """Give what has arrived to `sink`, as long as it wants more."""
        self._heard_at = self._loop.time()
        pieces = self.pieces
        try:
            more = sink(pieces.popleft() if len(pieces) == 1 else self._collected())
        except Exception as error:  # noqa: BLE001 - it is the error of who waits, not of the connection
            self._error, more = error, False
        if not more:
            self.sink = None
            self._wake()

    def _heard(self) -> None:
        """Let who waits look again; bytes go to who takes them as they come."""
        if self.sink is not None and self.pieces:
            self.hand_on(self.sink)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)

    def fail(self, failure: UpstreamFailure) -> None:
        """The exchange will not come to its end."""
        if self._failure is None and not self.complete:
            failure.exchange = self
            self._failure = failure
            self._heard()

    def end(self) -> None:
        """The last byte of the answer is here."""
        self.complete = True
        if self.on_end is not None:
            self.on_end()
        self._heard()

    def on_message_begin(self) -> None:
        if self.complete:
            raise httptools.HttpParserError("There is more than the answer.")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._started:
            self.headers.setdefault(name.lower(), value)

    def on_headers_complete(self) -> None:
        if self.complete:
            return
        status = self.parser.get_status_code()
        if status < 200:
            # 1xx is a preface: the answer proper follows.
            self.headers.clear()
            return
        self.status = status
        self._started = True
        self.pieces.clear()
        headers = self.headers
        chunked = headers.get(b"transfer-encoding", b"").lower().endswith(b"chunked")
        bodyless = status in (204, 304)
        self.until_close = not chunked and not bodyless and b"content-length" not in headers
        self.keep_alive = not self.until_close and self.parser.should_keep_alive()

    def on_message_complete(self) -> None:
        if self._started:
            self.end()


def _expire(waiter: asyncio.Future[bool]) -> None:
    if not waiter.done():
        waiter.set_result(False)
