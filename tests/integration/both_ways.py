"""A gateway on its socket between an upstream that says what it is told to and clients that do as they like.

It answers in one of two ways: on the wire that its server lends, or by the messages of ASGI.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple
from zoneinfo import ZoneInfo

from pydantic import SecretStr

from faregate.accounting.accountant import Accountant
from faregate.accounting.outbox import Outbox
from faregate.accounting.reconciler import Reconciler
from faregate.accounting.spend import Spend
from faregate.directory import Directory
from faregate.gateway.admission import Admitter
from faregate.gateway.identity import Gatekeeper
from faregate.gateway.models import ModelList
from faregate.gateway.relay import Relay
from faregate.gateway.routes import Gateway
from faregate.gateway.settlement import Settler
from faregate.gateway.upstream import Upstream, UpstreamSettings
from faregate.http_wire import EXTENSION
from faregate.ledger.memory import MemoryLedger
from faregate.ledger.port import AlreadySettled, Counter, Settled
from faregate.policy.model import Limit, Policy
from faregate.policy.windows import Calendar
from faregate.pricing.catalogue import Catalogue
from faregate.records import Status, UsageRecord
from faregate.server import Server, listen
from faregate.settings import Connection, OnOutage, Settings

Way = Literal["wire", "asgi"]
Headers = list[tuple[str, str]]

MODEL = "acme/cheap"
KEY = "sk-connection-key"
NOON = 1_795_435_200.0
PATIENCE = 30.0
"""Seconds that anybody may be silent. No test takes as long."""
_AT_ONCE = 64 * 1024
_CATALOGUE = {
    "id": MODEL,
    "context_length": 200_000,
    "pricing": {"prompt": "0.000001", "completion": "0.000001"},
    "top_provider": {"max_completion_tokens": 64_000},
}


def chat(*, stream: bool = True, version: str = "1.1", text: str = "Hello", headers: str = "") -> bytes:
    """A request for an answer; each of `headers` with its line end."""
    body = json.dumps({"model": MODEL, "stream": stream, "messages": [{"role": "user", "content": text}]}).encode()
    return request("POST", "/v1/chat/completions", version, f"{headers}Content-Length: {len(body)}\r\n") + body


def request(method: str, path: str, version: str = "1.1", headers: str = "") -> bytes:
    """The head of a request of Ada."""
    head = f"{method} {path} HTTP/{version}\r\nHost: gateway\r\nAuthorization: Bearer {KEY}\r\n"
    return f"{head}X-OpenWebUI-User-Id: ada\r\n{headers}\r\n".encode()


class Answer(NamedTuple):
    """Without the date, which nobody can foresee."""

    status: int
    headers: Headers
    body: bytes


class Client:
    """A client, and what it has read of its answer."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._unread = bytearray()
        self._left = 0
        self._framing: Literal["length", "chunks", "close"] = "close"
        self.body = b""

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._sock, data)

    async def ask(self, data: bytes) -> Answer:
        """Send a request, and read its answer."""
        await self.send(data)
        return await self.answer()

    async def answer(self) -> Answer:
        """The next answer, whole."""
        status, headers = await self.head()
        return Answer(status, headers, await self.rest())

    async def head(self) -> tuple[int, Headers]:
        """Status and headers of the next answer."""
        self.body = b""
        first, *lines = (await self._until(b"\r\n\r\n")).decode().rstrip().split("\r\n")
        status = int(first.removeprefix("HTTP/1.1 ")[:3])
        headers = [(name, value) for name, value in (line.split(": ", 1) for line in lines) if name != "date"]
        lengths = [int(value) for name, value in headers if name == "content-length"]
        if ("transfer-encoding", "chunked") in headers:
            assert not lengths
            self._framing = "chunks"
        elif lengths or status < 200:
            self._framing, self._left = "length", sum(lengths)
        else:
            self._framing = "close"
        return status, headers

    async def until(self, end: bytes) -> None:
        """Read until what there is of the body ends on this."""
        while not self.body.endswith(end):
            assert await self._more(), self.body

    async def rest(self) -> bytes:
        """The whole body, read to its end."""
        pieces = [self.body]
        while piece := await self._piece():
            pieces.append(piece)
        self.body = b"".join(pieces)
        return self.body

    async def closed(self) -> bool:
        """Whether the server has nothing more to say, and hangs up."""
        return not self._unread and not await self._read()

    async def cut(self) -> None:
        """Read until the connection ends, wherever that is."""
        try:
            while await self._read():
                self._unread.clear()
        except ConnectionError:
            pass

    def leave(self) -> None:
        self._sock.close()

    async def _more(self) -> bytes:
        piece = await self._piece()
        self.body += piece
        return piece

    async def _piece(self) -> bytes:
        if self._framing == "chunks":
            size = int(await self._until(b"\r\n"), 16)
            piece = await self._exactly(size)
            assert await self._exactly(2) == b"\r\n"
            return piece
        if self._framing == "length":
            piece, self._left = await self._exactly(self._left), 0
            return piece
        piece = bytes(self._unread) or await self._read()
        self._unread.clear()
        return piece

    async def _until(self, end: bytes) -> bytes:
        searched = 0
        while (at := self._unread.find(end, searched)) < 0:
            searched = max(0, len(self._unread) - len(end))
            if not await self._read():
                raise EOFError(bytes(self._unread))
        return await self._exactly(at + len(end))

    async def _exactly(self, size: int) -> bytes:
        while len(self._unread) < size:
            if not await self._read():
                raise EOFError(bytes(self._unread))
        data = bytes(self._unread[:size])
        del self._unread[:size]
        return data

    async def _read(self) -> bytes:
        data = await self._loop.sock_recv(self._sock, _AT_ONCE)
        self._unread += data
        return data


class Asked:
    """One request that has come to upstream, and what upstream says to it."""

    def __init__(self, body: bytes, writer: asyncio.StreamWriter, left: asyncio.Event) -> None:
        self.body = body
        self.left = left
        self.accepted = 0
        self._writer = writer

    async def say(self, *pieces: bytes) -> None:
        """Each piece as it comes on the network: others may run between."""
        for piece in pieces:
            self._writer.write(piece)
            await self._writer.drain()
            self.accepted += len(piece)
            await asyncio.sleep(0)

    async def stream(self, body: bytes, size: int = 2**30) -> None:
        """A whole answer that is a stream, in pieces of this size."""
        await self.say(STREAM, *chunked(body, size), b"0\r\n\r\n")

    async def answer(self, status: str, body: bytes, headers: bytes = b"") -> None:
        """A whole answer in JSON."""
        head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\n%bContent-Length: %d\r\n\r\n"
        await self.say(head % (status.encode(), headers, len(body)) + body)

    def end(self) -> None:
        self._writer.close()

    def reset(self) -> None:
        self._writer.transport.abort()


STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Generation-Id: gen-1\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def chunked(body: bytes, size: int = 2**30) -> list[bytes]:
    """The chunks of a part of an answer, in pieces of this size."""
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]


class _OpenRouter:
    def __init__(self) -> None:
        self.asked: asyncio.Queue[Asked] = asyncio.Queue()
        self.number = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = asyncio.Event()
        # What is on the way is to be little, so that what was taken can be told from it.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        writer.transport.set_write_buffer_limits(high=0)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                size = int(head.partition("content-length: ")[2].partition("\r\n")[0])
                self.number += 1
                self.asked.put_nowait(Asked(await reader.readexactly(size), writer, left))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            left.set()
            writer.close()


class _Database:
    def __init__(self) -> None:
        self.records: list[UsageRecord] = []

    async def write(self, people: Sequence[object], records: Sequence[UsageRecord]) -> Sequence[UsageRecord]:
        self.records += records
        return ()


class _Ledger(MemoryLedger):
    """A ledger that settles when it is let."""

    def __init__(self, spend: Spend) -> None:
        super().__init__(spend)
        self.settles = asyncio.Event()
        self.settles.set()

    async def settle(
        self, request_id: str, charges: Sequence[tuple[Counter, int]], record: UsageRecord
    ) -> Settled | AlreadySettled:
        await self.settles.wait()
        return await super().settle(request_id, charges, record)


class Node:
    """A gateway, answering in one way."""

    def __init__(
        self, way: Way, port: int, openrouter: _OpenRouter, limits: tuple[Limit, ...], patience: float
    ) -> None:
        self._way = way
        self._openrouter = openrouter
        self._clients: list[Client] = []
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        calendar = Calendar(ZoneInfo("UTC"))
        spend = Spend(calendar, NOON)
        directory = Directory((), (), (), changed=lambda user: None)
        directory.put_policy(Policy("default", "Default", limits))
        self._database = _Database()
        self._outbox = Outbox(self._database)
        self._ledger = _Ledger(spend)
        self.settles = self._ledger.settles
        accountant = Accountant(
            self._ledger, spend, self._outbox, Reconciler(_asked_later), calendar, lambda: directory.rulebook
        )
        catalogue = Catalogue.parse(json.dumps({"data": [_CATALOGUE]}).encode())
        admitter = Admitter(
            directory=directory,
            catalogue=lambda: catalogue,
            ledger=self._ledger,
            accountant=accountant,
            calendar=calendar,
            clock=lambda: NOON,
            node="node-1",
            salt=b"salt",
            contact="the help desk",
            on_outage=OnOutage.CLOSED,
        )
        self.upstream = Upstream(
            UpstreamSettings(f"http://127.0.0.1:{port}/api/v1", "key", None, "", 5, PATIENCE, patience)
        )
        ids = iter(range(1, 10_000))
        self._gateway = Gateway(
            Gatekeeper(Settings(_env_file=None), (Connection("owui", SecretStr(KEY)),)),
            admitter,
            Relay(self.upstream, self._ledger, Settler(accountant), "the help desk"),
            ModelList(self.upstream, Path("nowhere")),
            new_id=lambda: f"req-{next(ids)}",
            ledger_away=lambda: False,
            log_requests=False,
            max_in_flight=100,
        )
        self.server: Server

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """The application that is served."""
        assert EXTENSION in scope["extensions"]
        if self._way == "asgi":
            del scope["extensions"][EXTENSION]
        self._running += 1
        self._idle.clear()
        try:
            await self._gateway(scope, receive, send)
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    @property
    def asked(self) -> int:
        """How many requests have come to upstream."""
        return self._openrouter.number

    async def client(self, receive_buffer: int | None = None) -> Client:
        """Somebody new; `receive_buffer`, in bytes, is how much is on its way at most to who does not read."""
        sock = socket.socket()
        sock.setblocking(False)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client = Client(sock)
        self._clients.append(client)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.server.port))
        return client

    async def next(self) -> Asked:
        """The next request that comes to upstream."""
        return await self._openrouter.asked.get()

    async def at_rest(self, figure: Callable[[], int]) -> int:
        """What it comes to when everything that can be done without others has been: others are served meanwhile."""
        other = await self.client()
        same, last = 0, figure()
        while same < 20:
            assert (await other.ask(request("GET", "/v1/models"))).status == 200
            same, last = (same + 1, last) if figure() == last else (0, figure())
        other.leave()
        return last

    async def records(self) -> list[UsageRecord]:
        """What is on record when all requests are over. What is still held then is held for what is not known yet."""
        await self._idle.wait()
        await self._outbox.flush()
        records = self._database.records
        pending = {record.facts.request_id for record in records if record.status is Status.PENDING}
        assert {hold.facts.request_id for hold in self._ledger.live()} == pending
        assert all(hold.parked for hold in self._ledger.live())
        return records

    async def record(self) -> UsageRecord:
        """The one record of the one request."""
        (record,) = await self.records()
        return record

    def close(self) -> None:
        for client in self._clients:
            client.leave()


async def _asked_later(generation_id: str) -> None:
    raise AssertionError("nobody reconciles here")


@asynccontextmanager
async def answering(
    way: Way, *limits: Limit, patience: float = PATIENCE, grace: float = PATIENCE
) -> AsyncIterator[Node]:
    """A gateway that answers this way. `patience` and `grace` in seconds."""
    openrouter = _OpenRouter()
    there = await asyncio.start_server(openrouter.serve, "127.0.0.1", 0)
    node = Node(way, there.sockets[0].getsockname()[1], openrouter, limits, patience)
    node.server = Server(node, listen("127.0.0.1", 0), grace)
    await node.server.start()
    try:
        async with asyncio.timeout(PATIENCE):
            yield node
    finally:
        node.close()
        await node.server.stop()
        node.upstream.close()
        there.close()
