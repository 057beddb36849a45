"""An answer on its wire: what leaves in which write, and who hears of a client that has gone or does not read."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from fuzz_world import Wire as Network
from fuzz_world import quiet

from faregate.gateway.client import Client
from faregate.http_protocol import HttpProtocol, Limits, State
from faregate.http_wire import EXTENSION, Wire

GET = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
CLOSE = GET.replace(b"Host: x", b"Connection: close")
OLD = GET.replace(b"HTTP/1.1", b"HTTP/1.0")
TEXT = (b"content-type", b"text/plain")
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n"


class Transport(Network):
    """A connection that keeps each write by itself."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        self.writes: list[bytes] = []
        super().__init__(protocol)

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))


class Lent:
    """A request that waits for its answer, and the wire to answer it on."""

    def __init__(self, wire: Wire, transport: Transport, protocol: HttpProtocol) -> None:
        self.wire = wire
        self.transport = transport
        self.protocol = protocol

    @property
    def writes(self) -> list[bytes]:
        return self.transport.writes

    def client(self, patience: float) -> Client:
        """Who asked, as the gateway sees them."""
        return Client("req-1", _unused, _unused, patience, lambda: False, self.wire)


async def _unused(*_: object) -> Any:
    raise AssertionError("an answer on the wire needs no messages")


@asynccontextmanager
async def lent(request: bytes = GET) -> AsyncIterator[Lent]:
    wires: asyncio.Queue[Wire] = asyncio.Queue()
    over = asyncio.Event()

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        wires.put_nowait(scope["extensions"].pop(EXTENSION))
        await over.wait()

    config = uvicorn.Config(app, http=HttpProtocol, ws="none", lifespan="off", log_config=None, access_log=False)
    protocol = HttpProtocol(config, State(Limits()), {})
    transport = Transport(protocol)
    protocol.data_received(request)
    try:
        yield Lent(await wires.get(), transport, protocol)
    finally:
        over.set()
        await quiet()
        transport.lose()
        await quiet()


# --- what leaves, and when ---


async def test_a_whole_answer_is_one_write() -> None:
    async with lent() as one:
        one.wire.begin(200, [TEXT, (b"content-length", b"2")], chunked=False)
        one.wire.write(b"Hi")
        assert one.writes == []
        one.wire.end()
        assert one.writes == [b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nHi"]
        assert one.protocol.idle
        assert not one.transport.is_closing()


async def test_the_head_leaves_with_the_first_piece_and_the_end_by_itself() -> None:
    async with lent() as one:
        one.wire.begin(200, [TEXT])
        assert one.wire.pass_on(b"first")
        assert one.wire.pass_on(b"second")
        one.wire.end()
        assert one.writes == [STREAM + b"5\r\nfirst\r\n", b"6\r\nsecond\r\n", b"0\r\n\r\n"]


async def test_the_head_leaves_alone_when_it_is_told_to() -> None:
    async with lent() as one:
        one.wire.begin(200, [TEXT])
        one.wire.flush()
        one.wire.flush()
        assert one.writes == [STREAM]


async def test_what_comes_in_one_turn_of_the_loop_leaves_in_one_write() -> None:
    async with lent() as one:
        one.wire.begin(200, [TEXT])
        for piece in (b"a", b"b"):
            one.wire.write(piece)
            one.wire.flush_soon()
        assert one.writes == []
        await quiet()
        one.wire.write(b"c")
        one.wire.flush_soon()
        await quiet()
        assert one.writes == [STREAM + b"1\r\na\r\n1\r\nb\r\n", b"1\r\nc\r\n"]


async def test_what_waits_leaves_before_what_is_passed_on() -> None:
    async with lent() as one:
        one.wire.begin(200, [TEXT])
        one.wire.write(b"a")
        one.wire.flush_soon()
        assert one.wire.pass_on(b"b")
        await quiet()
        assert one.writes == [STREAM + b"1\r\na\r\n1\r\nb\r\n"]


@pytest.mark.parametrize("size", [1, 15, 16, 1023, 1024, 65_536])
async def test_a_piece_of_any_size_is_one_chunk_in_one_write(size: int) -> None:
    async with lent() as one:
        one.wire.begin(200, [TEXT])
        one.wire.flush()
        assert one.wire.pass_on(b"x" * size)
        assert one.writes[1:] == [b"%x\r\n%b\r\n" % (size, b"x" * size)]


@pytest.mark.parametrize("whole", [True, False])
async def test_what_is_sent_behind_leaves_behind_what_others_are_sent_in_this_turn(whole: bool) -> None:
    async with lent() as one:
        client, loop = one.client(1.0), asyncio.get_running_loop()
        if whole:
            assert client.answer_behind(200, b"text/plain", b"hello")
        else:
            await client.start(200, b"text/plain")
            assert client.send_behind(b"hello", last=True)
        # As the link to Redis does: its calls leave together in the next turn.
        loop.call_soon(one.writes.append, b"a call")
        await quiet()
        called, answer = one.writes
        assert called == b"a call"
        assert answer.endswith(b"hello" if whole else b"hello\r\n0\r\n\r\n")
        assert not client.waiting


async def test_what_was_to_leave_behind_has_left_when_the_exchange_is_over() -> None:
    async with lent() as one:
        client = one.client(1.0)
        assert client.answer_behind(200, b"text/plain", b"hello")
        assert one.writes == []
        client.close()
        assert one.writes[0].endswith(b"hello")
        await quiet()
        assert len(one.writes) == 1


async def test_nothing_is_sent_behind_to_who_does_not_keep_up() -> None:
    async with lent() as one:
        client = one.client(1.0)
        one.protocol.pause_writing()
        assert not client.answer_behind(200, b"text/plain", b"hello")
        assert not client.send_behind(b"hello", last=False)
        assert client.status == 0
        one.protocol.resume_writing()
        await client.answer(200, b"text/plain", b"hello")
        assert one.writes[0].endswith(b"hello")


async def test_an_empty_piece_is_not_the_end() -> None:
    async with lent() as one:
        one.wire.begin(200, [TEXT])
        one.wire.write(b"")
        one.wire.flush()
        assert one.writes == [STREAM]


async def test_who_wants_no_further_answer_is_told_and_closed() -> None:
    async with lent(CLOSE) as one:
        one.wire.begin(200, [TEXT])
        one.wire.end()
        assert one.writes == [STREAM.replace(b"transfer", b"connection: close\r\ntransfer") + b"0\r\n\r\n"]
        assert one.transport.is_closing()


async def test_an_old_client_is_sent_no_chunks() -> None:
    async with lent(OLD) as one:
        one.wire.begin(200, [TEXT])
        assert one.wire.pass_on(b"first")
        assert one.wire.pass_on(b"second")
        one.wire.end()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n"
        assert one.writes == [head + b"first", b"second"]
        assert one.transport.is_closing()


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: b", b"a\nb", b"a\rb", b"a\0b"])
async def test_a_header_with_a_line_break_is_an_error_and_no_answer_has_begun(value: bytes) -> None:
    async with lent() as one:
        with pytest.raises(ValueError, match="line break"):
            one.wire.begin(200, [TEXT, (b"retry-after", value)])
        one.wire.flush()
        assert one.writes == []
        one.wire.begin(500, [(b"content-length", b"0")], chunked=False)
        one.wire.end()
        assert one.writes == [b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n"]


# --- who does not keep up, and who has gone ---


async def test_nothing_is_passed_on_to_who_does_not_keep_up() -> None:
    async with lent() as one:
        one.wire.begin(200, [TEXT])
        one.protocol.pause_writing()
        assert not one.wire.ready
        assert not one.wire.pass_on(b"a")
        drained = asyncio.create_task(one.wire.drained())
        await quiet()
        assert not drained.done()
        one.protocol.resume_writing()
        await drained
        assert one.wire.pass_on(b"b")
        assert one.writes == [STREAM + b"1\r\nb\r\n"]


async def test_who_waits_for_a_client_to_keep_up_waits_no_longer_than_it_is_there() -> None:
    async with lent() as one:
        one.protocol.pause_writing()
        drained = asyncio.create_task(one.wire.drained())
        one.transport.lose()
        await drained


async def test_nothing_is_written_to_who_has_gone() -> None:
    async with lent() as one:
        one.transport.lose()
        await quiet()
        one.wire.begin(200, [TEXT])
        one.wire.write(b"a")
        one.wire.flush_soon()
        await quiet()
        one.wire.pass_on(b"b")
        one.wire.end()
        assert one.writes == []


def counted(calls: list[str]) -> Callable[[], None]:
    return lambda: calls.append("gone")


@pytest.mark.parametrize("begun", [False, True])
async def test_that_a_client_has_gone_is_told_once(begun: bool) -> None:
    calls: list[str] = []
    async with lent() as one:
        one.wire.on_gone(counted(calls))
        if begun:
            one.wire.begin(200, [TEXT])
            one.wire.flush()
        assert calls == []
        one.transport.lose()
        await quiet()
        assert calls == ["gone"]
        one.wire.end()
    assert calls == ["gone"]


async def test_who_asks_late_is_told_at_once() -> None:
    calls: list[str] = []
    async with lent() as one:
        one.transport.lose()
        await quiet()
        one.wire.on_gone(counted(calls))
        assert calls == ["gone"]


async def test_who_has_the_whole_answer_may_go() -> None:
    calls: list[str] = []
    async with lent() as one:
        one.wire.on_gone(counted(calls))
        one.wire.begin(200, [TEXT])
        one.wire.end()
        one.transport.lose()
        await quiet()
    assert calls == []


async def test_that_a_client_goes_is_read_also_behind_a_body_that_has_paused_it() -> None:
    large = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"a" * 100_000
    async with lent(large) as one:
        assert one.transport.paused
        one.wire.on_gone(lambda: None)
        assert not one.transport.paused


# --- the body of the request ---


def post(size: int, headers: bytes = b"") -> bytes:
    return b"POST / HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n" % (headers, size) + b"a" * size


CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\na\r\n0\r\n\r\n"


@pytest.mark.parametrize("request_", [post(2), CHUNKED])
async def test_a_body_that_is_here_is_handed_over_once(request_: bytes) -> None:
    async with lent(request_) as one:
        assert one.wire.whole_body() == b"aa"
        assert one.wire.whole_body() is None


@pytest.mark.parametrize("request_", [GET, post(2)[:-1], CHUNKED[:-2], post(2, b"Expect: 100-continue\r\n")], ids=str)
async def test_a_body_that_is_not_whole_or_is_waited_for_has_to_be_received(request_: bytes) -> None:
    async with lent(request_) as one:
        assert one.wire.whole_body() is None
        assert one.writes == []


async def test_who_has_gone_has_no_body_to_hand_over() -> None:
    async with lent(post(2)) as one:
        one.transport.lose()
        await quiet()
        assert one.wire.whole_body() is None


async def test_behind_a_large_body_that_was_handed_over_the_connection_is_read_on() -> None:
    async with lent(post(100_000)) as one:
        assert one.transport.paused
        assert one.wire.whole_body() == b"a" * 100_000
        assert not one.transport.paused


async def received(wire: Wire) -> dict[str, Any]:
    """The next message, which is there."""
    async with asyncio.timeout(0):
        return dict(await wire.receive())


async def test_what_came_before_anybody_received_is_received() -> None:
    async with lent(post(2)[:-1]) as one:
        assert await received(one.wire) == {"type": "http.request", "body": b"a", "more_body": True}
        with pytest.raises(TimeoutError):
            await received(one.wire)
        one.protocol.data_received(b"a")
        assert await received(one.wire) == {"type": "http.request", "body": b"a", "more_body": False}


async def test_the_pieces_of_a_body_that_nobody_received_yet_are_one() -> None:
    async with lent(post(0, b"Content-Length: 4\r\n").replace(b"Content-Length: 0\r\n", b"")) as one:
        for piece in (b"a", b"b", b"c", b"d"):
            one.protocol.data_received(piece)
        assert one.wire.whole_body() == b"abcd"


async def test_that_a_client_goes_is_received_also_if_nobody_did_before() -> None:
    async with lent(GET.replace(b"GET", b"POST")) as one:
        one.transport.lose()
        await quiet()
        assert await received(one.wire) == {"type": "http.disconnect"}


# --- the client of the gateway ---


async def stream(client: Client) -> None:
    await client.start(200, b"text/plain")
    client.flush()


async def whole(client: Client) -> None:
    await client.answer(200, b"text/plain", b"Hi")


@pytest.mark.parametrize("answer", [stream, whole])
async def test_no_answer_begins_before_the_client_has_read_the_one_before(answer: Any) -> None:
    async with lent() as one:
        one.protocol.pause_writing()
        answering = asyncio.create_task(answer(one.client(patience=60)))
        await quiet()
        assert one.writes == []
        one.protocol.resume_writing()
        await answering
        assert len(one.writes) == 1


@pytest.mark.parametrize("answer", [stream, whole])
async def test_a_client_that_never_reads_is_broken_off_and_counts_as_gone_once(answer: Any) -> None:
    calls: list[str] = []
    async with lent() as one:
        client = one.client(patience=0.01)
        client.watch()
        client.on_gone(counted(calls))
        one.protocol.pause_writing()
        await answer(client)
        assert one.transport.is_closing()
        await quiet()
        assert (one.writes, client.gone, client.waiting, calls) == ([], True, False, ["gone"])


async def test_an_answer_that_could_not_begin_may_be_another_one() -> None:
    async with lent() as one:
        client = one.client(patience=60)
        with pytest.raises(ValueError, match="line break"):
            await client.start(200, b"text/plain", [(b"x", b"a\nb")])
        assert client.status == 0
        await whole(client)
        assert one.writes[0].endswith(b"content-length: 2\r\n\r\nHi")
