"""Uvicorn, run inside a loop that is ours: our sockets, our signals, our order of stopping."""

import asyncio
import contextlib
import ctypes
import logging
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from faregate.http_protocol import HttpProtocol, Limits, State

KEEP_ALIVE_SECONDS = 75
"""How long an idle client connection is kept. Open WebUI keeps its side for 15 s and does not retry a POST."""

_FAREWELL_SECONDS = 1.0
_LAST_SECONDS = 0.05
_SO_ATTACH_FILTER = 26
_BPF_RETURN = 0x06
_TICK_SECONDS = 0.02
_log = logging.getLogger(__name__)


def _is_news(record: logging.LogRecord) -> bool:
    """A request that was told to end, and ended, is no mistake of the application."""
    if record.exc_info is None or not isinstance(record.exc_info[1], asyncio.CancelledError):
        return True
    task = asyncio.current_task()
    return task is None or not task.cancelling()


logging.getLogger("uvicorn.error").addFilter(_is_news)


def listen(host: str, port: int, shared: bool = False) -> socket.socket:
    """A listening socket; other processes of this user may listen on the address of a `shared` one, and share its load.

    Raises OSError when the address is taken or is not one of this machine.
    """
    sock = _bind(host, port, shared)
    try:
        sock.listen(2048)
    except BaseException:
        sock.close()
        raise
    return sock


def reserve(host: str, port: int) -> socket.socket:
    """A socket that keeps an address for `shared` listeners, and takes no connection itself.

    Raises OSError when the address is taken or is not one of this machine.
    """
    if port:
        # Beside the shared listeners of somebody else there would be room for ours: only this finds them.
        _bind(host, port, shared=False).close()
    return _bind(host, port, shared=True)


def _bind(host: str, port: int, shared: bool) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # `::` is every address, also those of the older kind.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(address)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def turn_away(sock: socket.socket) -> None:
    """Ignore who wants to connect from now on; who is connected and waits to be accepted stays.

    To close a socket with connections waiting would reset them, and with them requests that are not sent twice. Who is
    ignored tries again in a second, and is refused then: that is safe to take elsewhere. Where this cannot be done
    (other systems than Linux) nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return
    # A filter of one instruction: of each packet, keep nothing.
    drop = ctypes.create_string_buffer(struct.pack("HBBI", _BPF_RETURN, 0, 0, 0))
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(drop)))


def on_signals(stop: Callable[[], None], hurry: Callable[[], None]) -> None:
    """Call `stop` at the first SIGTERM or SIGINT, `hurry` at each that follows, on the running loop."""
    told = False

    def tell(name: str) -> None:
        nonlocal told
        if told:
            _log.warning("%s again: what still runs is cut; nothing that was settled is lost.", name)
            hurry()
        else:
            told = True
            _log.info("%s: no new requests; those that run may finish.", name)
            stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, tell, number.name)


class Server:
    """Serves one ASGI application on one socket."""

    def __init__(
        self, app: Callable[..., Any], sock: socket.socket, grace: float, limits: Limits | None = None
    ) -> None:
        self._sock = sock
        self._grace = grace
        config = uvicorn.Config(
            app,
            http=HttpProtocol,
            interface="asgi3",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
        )
        self._server = _Server(config, State(limits or Limits()))
        self._task: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port it listens on."""
        port: int = self._sock.getsockname()[1]
        return port

    async def start(self) -> None:
        """Serve until `stop`; returns when requests are accepted."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._sock]))
        accepting = asyncio.create_task(self._server.accepting.wait())
        await asyncio.wait({self._task, accepting}, return_when=asyncio.FIRST_COMPLETED)
        if not accepting.done():
            accepting.cancel()
            await self._task

    async def stop(self) -> None:
        """Part from the clients, accept no more, let what runs come to its end within the grace time, cut the rest."""
        if self._task is None:
            return
        ending = asyncio.get_running_loop().call_later(self._grace, self.hurry)
        await self._server.part(min(_FAREWELL_SECONDS, self._grace / 2))
        self._server.should_exit = True
        await self._task
        ending.cancel()
        # Cut requests still have their holds to bring to an end.
        self._server.cut()
        await asyncio.gather(*self._server.server_state.tasks, return_exceptions=True)

    def hurry(self) -> None:
        """Do not wait for what still runs."""
        self._server.force_exit = True
        if number := self._server.cut():
            _log.warning("%d requests were cut: they still ran when the time to stop was over.", number)
        # A client that does not read would keep its connection, and the stop with it.
        asyncio.get_running_loop().call_later(_FAREWELL_SECONDS, self._server.abort)


class _Server(uvicorn.Server):
    server_state: State

    def __init__(self, config: uvicorn.Config, state: State) -> None:
        super().__init__(config)
        self.server_state = state
        self.accepting = asyncio.Event()

    async def part(self, patience: float) -> None:
        """Accept and answer on, but with `Connection: close`, until no idle connection is left, or for `patience` s.

        To close an idle connection at once would lose the request that is under way on it, and clients do not send a
        POST twice.
        """
        self.server_state.stopping = True
        for connection in self._connections():
            connection.retire()
        for _ in range(round(patience / _TICK_SECONDS)):
            if self.force_exit or not any(connection.idle for connection in self._connections()):
                return
            await asyncio.sleep(_TICK_SECONDS)

    def cut(self) -> int:
        """End all requests, and say how many. Those that have been told before are left to their last words."""
        running = [task for task in self.server_state.tasks if not task.cancelling()]
        for task in running:
            task.cancel()
        return len(running)

    def abort(self) -> None:
        """Close all connections, whatever waits to be sent on them."""
        for connection in self._connections():
            connection.transport.abort()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for sock in sockets or ():
            turn_away(sock)
        # Those that wait are accepted meanwhile, and what they have sent is read.
        await asyncio.sleep(_LAST_SECONDS)
        for server in self.servers:
            server.close()
        if self.server_state.connections:
            await asyncio.sleep(_LAST_SECONDS)
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Signals are the composition root's: it has more to stop than this server.
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.accepting.set()

    def _connections(self) -> list[HttpProtocol]:
        return [one for one in self.server_state.connections if isinstance(one, HttpProtocol)]
