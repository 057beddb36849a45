"""Connections to OpenRouter: a keep-alive pool over one origin, with our key and our attribution."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from urllib.parse import urlsplit

from pydantic import SecretStr

from faregate import __version__
from faregate.gateway.dialing import Dialer
from faregate.gateway.http1 import Connection, Exchange, NoAnswer, TooSlow
from faregate.gateway.upstream_keys import Key, UpstreamKeys
from faregate.proxies import Proxy
from faregate.settings import UpstreamKey

IDLE_SECONDS = 30.0
"""How long an unused connection is kept: shorter than what the edge in front of OpenRouter keeps it."""

CROSSED_SECONDS = 0.5
"""A request and the news that its idle connection was closed cross on the way within a round trip."""

UNUSED_SECONDS = 1.0
"""Nobody gives up a connection as idle sooner. One that was in use until just now and ends has had work to do."""


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    """Where upstream is, and by which `proxy`, the key to it or the `keys` that share its work, and how long to wait
    for it (seconds)."""

    base_url: str
    api_key: str
    http_referer: str | None
    title: str
    connect_timeout: float
    first_byte_timeout: float
    idle_timeout: float
    keys: tuple[UpstreamKey, ...] = ()
    proxy: Proxy | None = None


class Upstream:
    """The one client of OpenRouter in this process."""

    def __init__(self, settings: UpstreamSettings) -> None:
        parts = urlsplit(settings.base_url)
        self._settings = settings
        self._host = parts.hostname or ""
        tls = parts.scheme == "https"
        self._dialer = Dialer(
            self._host,
            parts.port or (443 if tls else 80),
            tls=tls,
            proxy=settings.proxy,
            timeout=settings.connect_timeout,
        )
        self._prefix = parts.path.rstrip("/").encode()
        self.keys = UpstreamKeys(settings.keys or (UpstreamKey("default", SecretStr(settings.api_key)),))
        self._pool: list[Connection] = []
        self._pruning: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.idle_timeout = settings.idle_timeout
        host = f"[{self._host}]" if ":" in self._host else self._host
        if parts.port is not None:
            host = f"{host}:{parts.port}"
        lines = [
            f"host: {host}",
            f"x-title: {settings.title}",
            f"user-agent: faregate/{__version__}",
            "accept-encoding: identity",
        ]
        if settings.http_referer:
            lines.append(f"http-referer: {settings.http_referer}")
        self._headers = "\r\n".join(lines).encode() + b"\r\n"

    def post(
        self, path: bytes, body: bytes, *, stream: bool, key: Key | None = None
    ) -> Coroutine[None, None, Exchange]:
        """Send `body` (JSON) to `path` below the base URL and wait for the headers of the answer.

        A stream has to begin within the first-byte time-out. An answer in one piece may take as long as upstream may
        be silent in mid-stream: it comes when it is complete.

        Raises `NotReached` when nothing was sent, `NoAnswer` or `Cut` afterwards, and `TooSlow` with the
        exchange still open: what was asked for may be under way, and billed.
        """
        head = (
            b"POST %b%b HTTP/1.1\r\n%b%baccept: %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            % (
                self._prefix,
                path,
                self._headers,
                (key or self.keys.by_standing()[0]).authorization,
                b"text/event-stream" if stream else b"application/json",
                len(body),
            )
        )
        patience = self._settings.first_byte_timeout if stream else self._settings.idle_timeout
        return self._exchange(head, body, patience)

    async def get(self, path: bytes, key: Key | None = None) -> Exchange:
        """Ask for `path` below the base URL. Raises as `post` does."""
        head = b"GET %b%b HTTP/1.1\r\n%b%baccept: application/json\r\n\r\n" % (
            self._prefix,
            path,
            self._headers,
            (key or self.keys.by_standing()[0]).authorization,
        )
        return await self._exchange(head, b"", self._settings.first_byte_timeout)

    async def get_json(self, path: bytes, limit: int, key: Key | None = None) -> tuple[int, bytes]:
        """Status and whole body, at most `limit` bytes, of a GET. Raises `UpstreamFailure`."""
        try:
            exchange = await self.get(path, key)
        except TooSlow as slow:
            if slow.exchange is not None:
                slow.exchange.abort()
            raise
        try:
            return exchange.status, await self.read_all(exchange, limit)
        finally:
            self.done(exchange)

    async def read_all(self, exchange: Exchange, limit: int) -> bytes:
        """The rest of the body, at most `limit` bytes. Raises `UpstreamFailure`, `NotReached` never."""
        pieces: list[bytes] = []
        size = 0
        while data := exchange.take() if exchange.complete else await exchange.read(self.idle_timeout):
            size += len(data)
            if size > limit:
                exchange.abort()
            else:
                pieces.append(data)
        return b"".join(pieces)

    def done(self, exchange: Exchange) -> None:
        """The caller has read what it wants; the connection goes back to the pool if it is clean."""
        connection = exchange.connection
        if exchange.complete and connection.reusable:
            connection.idle_since = self._loop.time()
            self._pool.append(connection)
            if self._pruning is None:
                self._pruning = self._loop.call_later(IDLE_SECONDS, self._prune)
        else:
            exchange.abort()

    def close(self) -> None:
        """End all idle connections."""
        while self._pool:
            self._pool.pop().close()
        if self._pruning is not None:
            self._pruning.cancel()
            self._pruning = None

    def _prune(self) -> None:
        """Give up what a rush has left: the connection that was used last is the first to be used again."""
        self._pruning = None
        oldest = self._loop.time() - IDLE_SECONDS
        while self._pool and self._pool[0].idle_since <= oldest:
            self._pool.pop(0).close()
        if self._pool:
            self._pruning = self._loop.call_at(self._pool[0].idle_since + IDLE_SECONDS, self._prune)

    async def _exchange(self, head: bytes, body: bytes, patience: float) -> Exchange:
        connection = self._idle()
        if connection is not None:
            sent_at = self._loop.time()
            unused = sent_at - connection.idle_since
            exchange = connection.start(head, body)
            try:
                await exchange.answered(patience)
            except NoAnswer:
                # Closed at once: upstream was giving up an idle connection while the request was on its way, and did
                # not look at it. Later, or on a new connection, it may have worked on it, and then it bills.
                if unused < UNUSED_SECONDS or self._loop.time() - sent_at > CROSSED_SECONDS:
                    raise
            else:
                return exchange
        exchange = (await self._connect()).start(head, body)
        await exchange.answered(patience)
        return exchange

    def _idle(self) -> Connection | None:
        oldest = self._loop.time() - IDLE_SECONDS
        while self._pool:
            connection = self._pool.pop()
            if connection.reusable and connection.idle_since > oldest:
                return connection
            connection.close()
        return None

    async def _connect(self) -> Connection:
        return await self._dialer.dial(Connection)
