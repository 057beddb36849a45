"""How a connection to upstream comes about: TCP, through a proxy or not, and TLS over it, within one time-out."""

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from typing import TypeVar, cast

from faregate.gateway.http1 import NotReached
from faregate.gateway.tcp import connect
from faregate.gateway.tls import Tls, TlsPeer
from faregate.gateway.tunnel import NoWay, Tunnel
from faregate.proxies import Proxy

P = TypeVar("P", bound=asyncio.Protocol)


class Dialer:
    """Makes connections to one origin."""

    def __init__(self, host: str, port: int, *, tls: bool, proxy: Proxy | None, timeout: float) -> None:
        """`timeout` (seconds) is for all that a connection takes: names, TCP, the proxy, TLS."""
        self._host = host
        self._port = port
        self._proxy = proxy
        self._timeout = timeout
        proxy_tls = proxy is not None and proxy.tls
        context = _context() if tls or proxy_tls else None
        self._peer = TlsPeer(context, host) if context is not None and tls else None
        self._proxy_peer = TlsPeer(context, proxy.host) if context is not None and proxy and proxy_tls else None

    async def dial(self, make: Callable[[], P]) -> P:
        """A protocol of those that `make` made, connected: what it writes goes to the origin alone.

        Raises `NotReached`, in a sentence without secrets.
        """
        try:
            async with asyncio.timeout(self._timeout):
                if self._proxy is None:
                    return await self._direct(make)
                return await self._through(self._proxy, make)
        except TimeoutError:
            way = "" if self._proxy is None else f" through the proxy {self._proxy}"
            raise NotReached(f"no connection to {self._origin}{way} within {self._timeout:g} s") from None

    async def _direct(self, make: Callable[[], P]) -> P:
        try:
            transport, protocol = await _open(make, self._host, self._port, self._peer)
        except (OSError, UnicodeError) as error:
            raise self._not_reached(_why(error)) from None
        if transport.is_closing():
            raise self._not_reached("it closed the connection at once")
        return protocol

    async def _through(self, proxy: Proxy, make: Callable[[], P]) -> P:
        try:
            target = self._origin if self._host.isascii() else self._origin.encode("idna").decode()
            transport, tunnel = await _open(lambda: Tunnel(target, proxy), proxy.host, proxy.port, self._proxy_peer)
        except (OSError, UnicodeError) as error:
            raise self._not_reached(f"the proxy {proxy} cannot be reached: {_why(error)}") from None
        try:
            await tunnel.opened()
            if transport.is_closing():
                raise self._not_reached(f"the proxy {proxy} closed the connection")
            return await self._over(transport, make())
        except NoWay as refusal:
            raise self._not_reached(f"the proxy {proxy} {refusal}") from None
        except OSError as error:
            raise self._not_reached(f"{_why(error)} (through the proxy {proxy})") from None
        except asyncio.CancelledError:
            transport.abort()
            raise

    async def _over(self, transport: asyncio.Transport, protocol: P) -> P:
        """Give an open transport to `protocol`, with TLS between them if the origin has it."""
        outer = protocol if self._peer is None else Tls(protocol, self._peer)
        transport.set_protocol(outer)
        outer.connection_made(transport)
        if isinstance(outer, Tls):
            await outer.secured()
            if outer.is_closing():
                raise self._not_reached("it closed the connection at once")
        return protocol

    def _not_reached(self, why: str) -> NotReached:
        return NotReached(f"no connection to {self._origin}: {why}")

    @property
    def _origin(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{host}:{self._port}"


async def _open(make: Callable[[], P], host: str, port: int, peer: TlsPeer | None) -> tuple[asyncio.Transport, P]:
    """TCP, and TLS if there is a `peer` to speak it with. Raises OSError."""
    if peer is None:
        return await connect(make, host, port)
    _, tls = await connect(lambda: Tls(make(), peer), host, port)
    await tls.secured()
    return tls, cast(P, tls.get_protocol())


def _why(error: Exception) -> str:
    """What went wrong, for whoever runs this."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not accepted: {error.verify_message.rstrip('.')}. If it is of an authority of your "
            "own, name the file of that one's certificate in SSL_CERT_FILE"
        )
    if isinstance(error, ssl.SSLError):
        return f"no TLS with it: {(error.reason or str(error)).replace('_', ' ').lower()}"
    if isinstance(error, UnicodeError):
        return "its name is no host name"
    if isinstance(error, socket.gaierror):
        return f"its name is not known: {error.strerror}"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error)


def _context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context
