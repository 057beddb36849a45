"""Bytes of any kind from a client: nothing breaks, nothing is done twice, and in the end nothing is left.

The corpus goes first, cut everywhere; then what becomes of it by chance.
"""

import asyncio
import re
from typing import Any, NamedTuple

import pytest
import uvicorn
from fuzz_world import CUTS, TOKENS, UNHURRIED, Wire, corpus, mutated, quiet, split, timers
from hypothesis import given
from hypothesis import strategies as st

from faregate.http_protocol import HttpProtocol, Limits, State

REQUESTS = corpus("requests")
MEANING = {
    "absolute-form": ["GET /absolute"],
    "chunked": ["POST /chunked hello"],
    "close": ["POST /close hello"],
    "empty-lines-before": ["GET /get"],
    "expect": ["POST /expect hello"],
    "garbage-behind": ["POST /length hello"],
    "get": ["GET /get"],
    "h2c": ["POST /h2c hello"],
    "h2c-and-another": ["POST /h2c hello", "GET /another"],
    "head": ["HEAD /head", "GET /get"],
    "http-1.0": ["POST /old hello"],
    "length": ["POST /length hello"],
    "three-in-a-row": ["GET /one", "POST /two hello", "GET /three"],
    "websocket": ["GET /websocket"],
}
"""What the corpus asks for; the others are no requests, and what stands behind them is none either."""
FINAL = re.compile(rb"HTTP/1\.1 [2-5]\d\d ")
MOST_BODY = 65_536
"""Bytes of a body that wait for an application that does not read: uvicorn's high water."""


class Request(NamedTuple):
    """A request that reached the application with all that belongs to it."""

    method: str
    path: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Application:
    """Answers who asked it for something, and keeps what that was. One that is `deaf` never reads a body."""

    def __init__(self, *, deaf: bool = False) -> None:
        self.began = 0
        self.requests: list[Request] = []
        self._deaf = deaf

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self.began += 1
        if self._deaf:
            await asyncio.Event().wait()
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        else:
            return
        self.requests.append(Request(scope["method"], scope["raw_path"], scope["headers"], body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})


class Connected:
    """A connection of a client to an application."""

    def __init__(self, app: Application, limits: Limits | None = None) -> None:
        config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None, access_log=False, proxy_headers=False)
        self.state = State(limits or Limits())
        self.protocol = HttpProtocol(config, self.state, {})
        self.wire = Wire(self.protocol)


async def served(pieces: list[bytes]) -> list[Request]:
    """What the application was asked for in these pieces, after which the client leaves."""
    app = Application()
    to = Connected(app)
    for _ in to.wire.receive(pieces):
        await quiet()
    to.wire.lose()
    await quiet()
    assert not to.state.tasks
    assert not to.state.connections
    # Each is answered once; at most what was no request any more is answered, too.
    answers = len(FINAL.findall(to.wire.written))
    assert len(app.requests) <= answers <= app.began + 1
    return app.requests


def run(pieces: list[bytes]) -> list[Request]:
    return asyncio.run(served(pieces))


def assert_same(pieces: list[bytes], one_by_one: list[Request]) -> None:
    """What stands behind a request in the same piece may end the connection before it is answered: then it is not."""
    found = run(pieces)
    assert found == one_by_one[: len(found)]


@pytest.mark.parametrize("name", REQUESTS)
def test_a_conversation_of_the_corpus_is_read_as_what_it_is(name: str):
    found = run([REQUESTS[name]])
    asked = [f"{one.method} {one.path.decode()} {one.body.decode()}".strip() for one in found]
    assert asked == MEANING.get(name, [])
    # Trailers are no headers, least of all those that say who somebody is.
    assert b"mallory" not in {value for one in found for _, value in one.headers}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_conversation_of_the_corpus_is_the_same_cut_anywhere(name: str):
    conversation = REQUESTS[name]
    one_by_one = run(split(conversation, range(len(conversation))))
    for cut in range(len(conversation)):
        assert_same(split(conversation, [cut]), one_by_one)


@UNHURRIED
@given(conversation=mutated(REQUESTS.values()), cuts=CUTS)
def test_no_split_of_any_conversation_makes_other_requests_of_it(conversation: bytes, cuts: list[int]):
    one_by_one = run(split(conversation, range(len(conversation))))
    assert_same(split(conversation, cuts), one_by_one)


@UNHURRIED
@given(data=st.lists(st.sampled_from(TOKENS) | st.binary(max_size=30), max_size=12).map(b"".join), cuts=CUTS)
def test_no_bytes_at_all_break_a_connection(data: bytes, cuts: list[int]):
    assert_same(split(data, cuts), run(split(data, range(len(data)))))


ENDLESS = (
    b"GET / HTTP/1.1\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 10000000\r\n\r\n",
    b"GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: x\r\n",
    b"GET /",
    b"",
)
FILLS = (
    *(b"X: y\r\n", b"x", b"1;x", b"1\r\na\r\n", b"100\r\n" + b"a" * 256 + b"\r\n", b"\r\n", b": "),
    *(b"a" * 200, b"GET / HTTP/1.1\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"),
)


@UNHURRIED
@given(beginning=st.sampled_from(ENDLESS), fill=st.sampled_from(FILLS), size=st.sampled_from([5000, 20_000]))
def test_what_has_no_end_is_not_kept_in_memory_while_nobody_reads_it(beginning: bytes, fill: bytes, size: int):
    head_bytes = 1024
    endless = (beginning + fill * (8 * MOST_BODY // len(fill)))[: 8 * MOST_BODY]

    async def keep() -> None:
        to = Connected(Application(deaf=True), Limits(head_bytes=head_bytes))
        for _ in to.wire.receive([endless[at : at + size] for at in range(0, len(endless), size)]):
            await quiet()
        assert to.wire.paused or to.wire.over or b"connection: close" in to.wire.written
        protocol = to.protocol
        assert sum(len(name) + len(value) for name, value in protocol.headers or []) <= head_bytes + size
        if protocol.cycle is not None:
            assert len(protocol.cycle.body) <= MOST_BODY + size
            assert len(protocol.pipeline) <= size
        to.wire.lose()
        for task in to.state.tasks:
            task.cancel()
        await quiet()

    asyncio.run(keep())


def test_a_connection_that_was_refused_leaves_no_timer_behind() -> None:
    async def refuse() -> None:
        to = Connected(Application())
        for _ in to.wire.receive([b"GET / HTT", b"\x00"]):
            await quiet()
        to.wire.lose()
        await quiet()
        assert not timers()

    asyncio.run(refuse())
