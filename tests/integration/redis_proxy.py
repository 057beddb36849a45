"""A network that fails on purpose: a TCP proxy on loopback between Faregate and a Redis."""

import asyncio
import contextlib
import random
import threading
from typing import Any


class RedisProxy:
    """Passes everything on, but for what a test asks of it. Runs in a thread, for tests of any kind.

    `seed` decides which replies are lost; give it with the failure of a test to see the same again.
    """

    def __init__(self, port: int, seed: int = 0) -> None:
        """`port` is that of the Redis on 127.0.0.1."""
        self.port = 0
        self.seed = seed
        self.connections = 0
        self._target = port
        self._random = random.Random(seed)
        self._delay = 0.0
        self._loss = 0.0
        self._refusing = False
        self._mute = 0
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

    @property
    def url(self) -> str:
        """What REDIS_URL is for the Redis behind it."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self._thread = threading.Thread(target=self._loop.run_forever, name="redis-proxy", daemon=True)
        self._thread.start()
        self._do(self._serve())

    def stop(self) -> None:
        """Drop all connections and take no more."""
        if self._thread is None:
            return
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._thread = None
        self._loop.close()

    def delay(self, seconds: float) -> None:
        """Let each piece of a reply wait for `seconds`."""
        self._delay = seconds

    def loss(self, probability: float) -> None:
        """Drop a connection, in place of passing a piece of a reply on, in so many of all cases."""
        self._loss = probability

    def refuse(self, refusing: bool = True) -> None:
        """Close each new connection at once."""
        self._refusing = refusing

    def mute(self, connections: int) -> None:
        """Let the next so many connections hear nothing."""
        self._mute = connections

    def drop_all(self) -> None:
        """Reset all connections that are open now: what is under way is lost."""
        self._do(self._drop())

    def _do(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _serve(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._drop()

    async def _drop(self) -> None:
        open_now = dict(self._open)
        for task, writer in open_now.items():
            writer.transport.abort()
            task.cancel()
        if open_now:
            await asyncio.wait(open_now)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        self.connections += 1
        # Cancelled by `drop_all`, which is no failure of the server that called this.
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await self._relay(reader, writer)
        del self._open[task]
        writer.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            return
        if self._mute:
            self._mute -= 1
            while await reader.read(65_536):
                pass
            return
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        ways = {
            asyncio.ensure_future(self._pass(reader, back, replies=False)),
            asyncio.ensure_future(self._pass(there, writer, replies=True)),
        }
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            back.transport.abort()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool) -> None:
        while piece := await reader.read(65_536):
            if replies and self._random.random() < self._loss:
                return
            if replies and self._delay:
                await asyncio.sleep(self._delay)
            writer.write(piece)
            await writer.drain()
