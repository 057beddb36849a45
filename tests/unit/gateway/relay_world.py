"""One request on its way through the relay, to an upstream of the test, for a client that may leave."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

from gateway_world import World

from faregate.gateway.client import Client
from faregate.gateway.relay import Relay
from faregate.gateway.settlement import Settler
from faregate.gateway.upstream import Upstream, UpstreamSettings
from faregate.records import UsageRecord
from faregate.settings import OnClientLeft, OnOutage

PATIENCE = 30.0
"""Seconds that upstream may be silent. No test takes as long."""

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Generation-Id: gen-1\r\n\r\n"
USAGE = ',"usage":{"prompt_tokens":5,"completion_tokens":5,"total_tokens":10,"cost":0.25}'
DONE = b"data: [DONE]\n\n"


def chunk(provider: str, more: str = "") -> bytes:
    text = f'{{"id":"gen-1","provider":"{provider}","choices":[{{"index":0,"delta":{{"content":"Hi"}}}}]{more}}}'
    return b"data: " + text.encode() + b"\n\n"


class Answering(Protocol):
    """An OpenRouter of the test. `left` is set when its connection has ended."""

    left: asyncio.Event

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None: ...


class Dictated:
    """An OpenRouter that says what the test tells it to, when it does, and is silent otherwise."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self._asked: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self._asked.set_result(writer)
        try:
            while await reader.read(65_536):
                pass
        except ConnectionError:
            pass
        finally:
            self.left.set()
            writer.close()

    async def say(self, data: bytes) -> None:
        """Once it has been asked, send this."""
        writer = await self._asked
        writer.write(data)
        await writer.drain()

    async def end(self) -> None:
        """Close the connection."""
        (await self._asked).close()

    async def reset(self) -> None:
        """Break the connection off."""
        (await self._asked).transport.abort()


class Exchange:
    """One request, and its client, which may leave."""

    def __init__(self, world: World, upstream: Answering) -> None:
        self.world = world
        self.upstream = upstream
        self.client_leaves = asyncio.Event()
        self.begun = asyncio.Event()
        self.received = b""
        self.task: asyncio.Task[None]
        self._more = asyncio.Event()

    async def receive(self) -> Any:
        await self.client_leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if body := message.get("body"):
            self.received += body
            self.begun.set()
            self._more.set()

    async def until_received(self, data: bytes) -> None:
        """Wait until the client's body ends on this."""
        async with asyncio.timeout(PATIENCE / 2):
            while not self.received.endswith(data):
                self._more.clear()
                await self._more.wait()

    async def record(self) -> UsageRecord:
        """What is on record when it has ended, which should not take for ever."""
        async with asyncio.timeout(PATIENCE / 2):
            await asyncio.gather(self.task, return_exceptions=True)
            await self.upstream.left.wait()
        return await self.world.last_record()


@asynccontextmanager
async def exchange(
    upstream: Answering,
    *,
    stream: bool = True,
    client_left: OnClientLeft = OnClientLeft.AUTO,
    patience: float = PATIENCE,
) -> AsyncIterator[Exchange]:
    """A request that has been admitted, on its way to `upstream`, which may be silent for `patience` seconds."""
    world = World(OnOutage.CLOSED)
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = Upstream(UpstreamSettings(f"http://127.0.0.1:{port}/api/v1", "key", None, "", 5, PATIENCE, patience))
    one = Exchange(world, upstream)
    facts = (await world.ask(stream=stream)).facts
    person = Client(facts.request_id, one.receive, one.send, PATIENCE, lambda: False)
    person.watch()
    through = Relay(client, world.ledger, Settler(world.accountant), "the help desk", client_left)
    one.task = asyncio.create_task(through.chat(facts, b"{}", person))
    try:
        yield one
    finally:
        one.task.cancel()
        await asyncio.gather(one.task, return_exceptions=True)
        person.close()
        client.close()
        server.close()
