"""A way through an HTTP proxy to another server (CONNECT: RFC 9110, section 9.3.6)."""

import asyncio
from typing import cast

from faregate.proxies import Proxy

MAX_HEAD_BYTES = 16 * 1024


class NoWay(Exception):
    """The proxy makes no tunnel. The message says what "the proxy" does instead."""


class Tunnel(asyncio.Protocol):
    """Asks a proxy for a way. When it is `opened`, the transport is for another protocol."""

    def __init__(self, target: str, proxy: Proxy) -> None:
        """`target` is host:port."""
        self._proxy = proxy
        host = target.encode("ascii")
        self._request = b"CONNECT %b HTTP/1.1\r\nhost: %b\r\n" % (host, host)
        if proxy.authorization is not None:
            self._request += b"proxy-authorization: %b\r\n" % proxy.authorization
        self._answer = b""
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def opened(self) -> None:
        """Wait for the proxy's consent. Raises `NoWay`."""
        await self._opened

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request + b"\r\n")

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, end, rest = self._answer.partition(b"\r\n\r\n")
        if rest:
            self._refuse("sends more than its answer")
        elif end:
            self._judge(head.partition(b"\r\n")[0])
        elif len(head) > MAX_HEAD_BYTES:
            self._refuse("sends headers without end")

    def connection_lost(self, exc: Exception | None) -> None:
        self._refuse("closed the connection")

    def _judge(self, line: bytes) -> None:
        version, _, rest = line.partition(b" ")
        status = rest[:3].decode("latin-1")
        if not version.startswith(b"HTTP/1.") or not (status.isdecimal() and status.isascii() and len(status) == 3):
            self._refuse("does not speak HTTP")
        elif status.startswith("2"):
            self._opened.set_result(None)
        elif status.startswith("1"):
            # A preface: the answer proper follows.
            self._answer = b""
        elif status == "407" and self._proxy.authorization is None:
            self._refuse("wants a user and a password, which its URL should have (HTTP 407)")
        elif status == "407":
            self._refuse("does not take the user and the password of its URL (HTTP 407)")
        else:
            self._refuse(f"refuses to connect (HTTP {status})")

    def _refuse(self, why: str) -> None:
        if not self._opened.done():
            self._opened.set_exception(NoWay(why))
            # Whoever dialled may have left.
            self._opened.exception()
        self._transport.abort()
