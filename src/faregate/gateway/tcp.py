"""TCP to a host by its name, whichever of its addresses answers first (RFC 8305)."""

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Iterable
from itertools import chain, zip_longest
from typing import Any, TypeVar

HEAD_START = 0.25
"""Seconds that an address has for itself before the next one is tried beside it (RFC 8305, section 5)."""

KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
"""Probes begin after a minute of silence: a dead peer is noticed in two, and a NAT on the way does not forget us."""

P = TypeVar("P", bound=asyncio.BaseProtocol)


async def connect(make: Callable[[], P], host: str, port: int) -> tuple[asyncio.Transport, P]:
    """A connection to `host`, for a protocol that `make` makes. Every address that is tried gets one of its own.

    Raises OSError: that of the first address, when none of them can be reached.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    transport, protocol = await _first(make, deque(by_turns(found)), port)
    if transport.is_closing():
        # Its protocol knows why.
        return transport, protocol
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return transport, protocol


def by_turns(found: Iterable[tuple[int, int, int, str, tuple[Any, ...]]]) -> list[str]:
    """The addresses, IPv4 and IPv6 by turns, beginning with what the system prefers."""
    families: dict[int, list[str]] = {}
    for family, _, _, _, address in found:
        scope = f"%{address[3]}" if len(address) == 4 and address[3] and "%" not in address[0] else ""
        families.setdefault(family, []).append(f"{address[0]}{scope}")
    return [address for address in chain(*zip_longest(*families.values())) if address is not None]


async def _first(make: Callable[[], P], waiting: deque[str], port: int) -> tuple[asyncio.Transport, P]:
    # Of the two event loops, one cannot do this itself.
    trying: set[asyncio.Task[tuple[asyncio.Transport, P]]] = set()
    failure: BaseException | None = None
    won: asyncio.Task[tuple[asyncio.Transport, P]] | None = None
    try:
        while waiting or trying:
            if waiting:
                trying.add(asyncio.create_task(_open(make, waiting.popleft(), port)))
            done, _ = await asyncio.wait(
                trying, timeout=HEAD_START if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                error = task.exception()
                if error is None:
                    won = task
                    return task.result()
                trying.discard(task)
                failure = failure or error
    finally:
        if losers := trying - {won}:
            for task in losers:
                task.cancel()
            await asyncio.wait(losers)
            for task in losers:
                if not task.cancelled() and task.exception() is None:
                    # It got there in the same moment.
                    task.result()[0].abort()
    raise failure or OSError(f"there is no address for port {port}")


async def _open(make: Callable[[], P], address: str, port: int) -> tuple[asyncio.Transport, P]:
    return await asyncio.get_running_loop().create_connection(make, address, port)
