"""The ways in which clients come to a gateway, and leave it: each a request in bytes, and what should come of it."""

import asyncio
import json
import random
import socket
import struct
from collections.abc import Iterable, Sequence
from enum import Enum, auto
from functools import cache
from typing import NamedTuple

from commands import CONNECTION_KEY, DEADLINE
from open_webui import Person, plain_headers, user_turn

SLOW_BUFFER = 8192
"""Bytes that a slow reader's system takes before its reader does."""
SLOW_PIECE = 32_768
SLOW_PAUSE = 0.002
LAST_CHUNK = b"\r\n0\r\n\r\n"
LONGEST_ANSWER = 2**21
SPENT_MODEL = "simulator/costly"
"""The model that the policy of the soak gives nobody."""


class Leaving(Enum):
    """When a client goes away."""

    NEVER = auto()
    IN_ITS_REQUEST = auto()
    BEFORE_THE_ANSWER = auto()
    IN_THE_ANSWER = auto()


class Kind(NamedTuple):
    """One way to come. `status` and `ending` are what its answer should have, `share` is its part of a hundred."""

    name: str
    share: int
    text: str = "Hi"
    stream: bool = True
    status: int = 200
    ending: bytes = b""
    model: str = "openai/gpt-4o-mini"
    first: str = "POST /v1/chat/completions"
    key: str = CONNECTION_KEY
    body: bytes | None = None
    leaving: Leaving = Leaving.NEVER
    slow: bool = False


DONE = b"data: [DONE]\n\n"
PACED = "Hi [[tokens=40]] [[pace=0.002]]"

KINDS = (
    Kind("json", 20, stream=False, ending=b"}"),
    Kind("stream", 20, ending=DONE),
    Kind("paced", 5, "Hi [[tokens=10]] [[pace=0.002]]", ending=DONE),
    Kind("left in the answer", 8, PACED, leaving=Leaving.IN_THE_ANSWER),
    Kind("left, and it runs on", 4, f"{PACED} [[provider=Groq]]", leaving=Leaving.IN_THE_ANSWER),
    Kind("left in silence", 3, "Hi [[stall=3]]", leaving=Leaving.IN_THE_ANSWER),
    Kind("left before the answer", 4, "Hi [[wait=0.02]]", leaving=Leaving.BEFORE_THE_ANSWER),
    Kind("left before the json", 3, "Hi [[wait=0.02]]", stream=False, leaving=Leaving.BEFORE_THE_ANSWER),
    Kind("left in its request", 4, leaving=Leaving.IN_ITS_REQUEST),
    Kind("over quota", 5, model=SPENT_MODEL, status=429, ending=b"}"),
    Kind("not JSON", 2, body=b'{"model": ', status=400, ending=b"}"),
    Kind("unknown model", 2, model="acme/nobody", status=404, ending=b"}"),
    Kind("unknown key", 2, key="wrong", status=401, ending=b"}"),
    Kind("unknown path", 1, first="POST /v1/nowhere", status=404, ending=b"}"),
    Kind("not HTTP", 2, first="BREW /v1/chat/completions", status=400, ending=b"}"),
    Kind("list", 2, first="GET /v1/models", body=b""),
    Kind("refused upstream", 3, "Hi [[error=500]]", status=500, ending=b"}"),
    Kind("refused upstream json", 2, "Hi [[error=429-upstream]]", stream=False, status=429, ending=b"}"),
    Kind("error in the answer", 2, "Hi [[error-after=3]]", ending=b"\n\n"),
    Kind("cut", 1, "Hi [[cut=3]]", ending=b"\n\n"),
    Kind("cut json", 1, "Hi [[cut=100]]", stream=False, status=502, ending=b"}"),
    Kind("without usage", 1, "Hi [[no-usage]]", ending=DONE),
    Kind("slow reader", 3, "Hi [[big=500000]]", ending=DONE, slow=True),
)
assert sum(kind.share for kind in KINDS) == 100


class Step(NamedTuple):
    """One visit of a plan. `moment`, from 0 to 1, is how far it comes before it leaves."""

    kind: Kind
    person: Person
    moment: float


def plan(kinds: Iterable[Kind], people: Sequence[Person], chance: random.Random) -> list[Step]:
    """These visits, by people and in an order that chance decides."""
    steps = [Step(kind, chance.choice(people), chance.random()) for kind in kinds]
    chance.shuffle(steps)
    return steps


def mixture(count: int) -> list[Kind]:
    """So many visits of all kinds, by their shares: the same ones each time."""
    found = [kind for kind in KINDS for _ in range(count * kind.share // 100)]
    return found + list(KINDS[: count - len(found)])


async def go(port: int, steps: Iterable[Step], at_once: int) -> None:
    """Make all visits, so many at once. Raises AssertionError for an answer that is not what it should be."""
    left = iter(steps)
    async with asyncio.TaskGroup() as visitors:
        for _ in range(at_once):
            visitors.create_task(_visitor(port, left))


async def _visitor(port: int, steps: Iterable[Step]) -> None:
    line = _Line(port)
    try:
        for step in steps:
            async with asyncio.timeout(DEADLINE):
                await _visit(line, step)
    finally:
        line.hang_up()


class _Line:
    """A visitor's connection, made anew when it is gone."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writer: asyncio.StreamWriter | None = None
        self.reader: asyncio.StreamReader

    async def send(self, data: bytes, *, slow: bool) -> None:
        if slow:
            self.hang_up()
        if self._writer is None:
            sock = socket.socket()
            sock.setblocking(False)
            if slow:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self._port))
            limit = SLOW_BUFFER if slow else LONGEST_ANSWER
            self.reader, self._writer = await asyncio.open_connection(sock=sock, limit=limit)
        self._writer.write(data)
        await self._writer.drain()

    def hang_up(self, *, rudely: bool = False) -> None:
        """Close it; `rudely`, with a reset."""
        if self._writer is not None:
            if rudely:
                sock = self._writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._writer.transport.abort()
            self._writer = None


async def _visit(line: _Line, step: Step) -> None:
    kind, request = step.kind, _request(step.kind, step.person)
    rudely = step.moment > 0.5
    if kind.leaving is Leaving.IN_ITS_REQUEST:
        await line.send(request[: 1 + int(step.moment * (len(request) - 2))], slow=False)
        line.hang_up(rudely=rudely)
        return
    await line.send(request, slow=kind.slow)
    if kind.leaving is Leaving.BEFORE_THE_ANSWER:
        # Some have left before the gateway reads of it, some while upstream thinks.
        await asyncio.sleep(step.moment * 0.02)
        line.hang_up(rudely=rudely)
        return
    head = await line.reader.readuntil(b"\r\n\r\n")
    assert int(head[9:12]) == kind.status, (kind.name, head, await line.reader.read(1000))
    if kind.leaving is Leaving.IN_THE_ANSWER:
        # At least three events of about 200 bytes come, also from those who fall silent then.
        await line.reader.readexactly(1 + int(step.moment * 500))
        line.hang_up(rudely=rudely)
        return
    body = await _body(line.reader, head, slow=kind.slow)
    assert body.endswith(kind.ending), (kind.name, head, body[-1000:])
    if kind.slow or b"connection: close" in head:
        line.hang_up()


async def _body(reader: asyncio.StreamReader, head: bytes, *, slow: bool) -> bytes:
    """The body; of one in chunks that a slow client reads, or that is long, no more than its end can be relied on."""
    before, found, length = head.partition(b"content-length: ")
    if found:
        return await reader.readexactly(int(length.partition(b"\r\n")[0]))
    if not slow:
        return (await reader.readuntil(LAST_CHUNK)).removesuffix(LAST_CHUNK)
    tail = b""
    while not tail.endswith(LAST_CHUNK):
        data = await reader.read(SLOW_PIECE)
        assert data, (before, tail)
        tail = (tail + data)[-1000:]
        await asyncio.sleep(SLOW_PAUSE)
    return tail.removesuffix(LAST_CHUNK)


@cache
def _request(kind: Kind, person: Person) -> bytes:
    body = kind.body
    if body is None:
        body = json.dumps(user_turn(kind.text, model=kind.model, stream=kind.stream, tools=[])).encode()
    lines = [f"{name}: {value}" for name, value in plain_headers(person, kind.key).items()]
    head = "\r\n".join([f"{kind.first} HTTP/1.1", "Host: x", *lines, f"Content-Length: {len(body)}"])
    return head.encode() + b"\r\n\r\n" + body
