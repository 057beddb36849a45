"""Uvicorn, run inside a loop that is ours: our sockets, our signals, our order of stopping."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

KEEP_ALIVE_SECONDS = 75
"""How long an idle client connection is kept. Open WebUI keeps its side for 15 s and does not retry a POST."""


# Its news of starting and stopping are ours to tell; what goes wrong is not.
logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError when the address is taken or is not one of this machine."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # `::` is every address, also those of the older kind.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(address)
        sock.listen(2048)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


class Server:
    """Serves one ASGI application on one socket."""

    def __init__(self, app: Callable[..., Any], sock: socket.socket, grace: float) -> None:
        self._sock = sock
        config = uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=max(1, round(grace)),
        )
        self._server = _Server(config)
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
        """Accept no more, let what runs come to its end within the grace time, cut the rest."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task
        # Cut requests still have their holds to bring to an end.
        cut = list(self._server.server_state.tasks)
        for task in cut:
            task.cancel()
        await asyncio.gather(*cut, return_exceptions=True)

    def hurry(self) -> None:
        """Do not wait for what still runs."""
        self._server.force_exit = True


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.accepting = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Signals are the composition root's: it has more to stop than this server.
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.accepting.set()
