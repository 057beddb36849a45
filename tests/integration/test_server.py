"""The server on its socket: what it makes of bytes, of strangers, and of being told to stop."""

import asyncio
import json
import logging
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from faregate.http_protocol import Limits
from faregate.server import Server, listen, turn_away

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]

GET = b"GET /get HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /post HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"POST /chunked HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2\r\nhe\r\n3;extension=1\r\nllo\r\n0\r\nX-Person: mallory\r\n\r\n"
)
H2C = (
    b"POST /h2c HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: 5\r\n\r\nhello"
)
H2C_CHUNKED = (
    b"POST /h2c-chunked HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
)
H2C_CLOSE = H2C.replace(b"Connection: Upgrade", b"Connection: close, Upgrade")
WEBSOCKET = b"GET /websocket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
REQUESTS = [GET, POST, CHUNKED, H2C, H2C_CHUNKED, WEBSOCKET]


async def echo(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Answers with what it was asked."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        if not message["more_body"]:
            break
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    await answer(send, {"path": scope["path"], "body": body.decode(), "headers": headers})


async def answer(send: Send, value: object) -> None:
    content = json.dumps(value).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content, "more_body": False})


class Connection:
    """A client that says what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], Any]:
        """Status, headers and the JSON of the next answer."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        status, *lines = head.strip().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        return int(status.split()[1]), headers, json.loads(body) if body else None

    async def rest(self) -> bytes:
        """All that comes until the server closes."""
        try:
            return await self._reader.read()
        except ConnectionError:
            return b""

    async def close(self) -> None:
        self._writer.transport.abort()


class Served:
    """A server, and connections to it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._open: list[Connection] = []

    async def connect(self) -> Connection:
        connection = Connection(*await asyncio.open_connection("127.0.0.1", self.server.port))
        self._open.append(connection)
        return connection

    async def close(self) -> None:
        for connection in self._open:
            await connection.close()


@asynccontextmanager
async def serving(app: Any = echo, grace: float = 20, limits: Limits | None = None) -> AsyncIterator[Served]:
    server = Server(app, listen("127.0.0.1", 0), grace, limits)
    await server.start()
    served = Served(server)
    try:
        async with asyncio.timeout(30):
            yield served
    finally:
        await served.close()
        await server.stop()


def expected(request: bytes) -> tuple[str, str]:
    return request.split()[1].decode(), "hello" if request.startswith(b"POST") else ""


class Gate:
    """An application whose requests wait until they are let go; each says its name on arrival."""

    def __init__(self) -> None:
        self.arrived: asyncio.Queue[str] = asyncio.Queue()
        self.open = asyncio.Event()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        self.arrived.put_nowait(scope["path"])
        await self.open.wait()
        await echo(scope, receive, send)


# --- requests ---


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    asked=st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=4),
    cuts=st.lists(st.integers(1, 1000), max_size=6),
)
def test_requests_are_the_same_however_their_bytes_arrive(asked: list[bytes], cuts: list[int]):
    async def run() -> list[tuple[str, str]]:
        stream = b"".join(asked)
        ends = sorted({cut for cut in cuts if cut < len(stream)})
        async with serving() as served:
            client = await served.connect()
            for start, end in zip([0, *ends], [*ends, len(stream)], strict=True):
                await client.send(stream[start:end])
                # Lets the server read what has come so far.
                await asyncio.sleep(0)
            answers = [await client.answer() for _ in asked]
        return [(value["path"], value["body"]) for _, _, value in answers]

    assert uvloop.run(run()) == [expected(request) for request in asked]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: request.split()[1].decode())
async def test_a_request_may_come_byte_by_byte_and_another_after_it(request_: bytes):
    async with serving() as served:
        client = await served.connect()
        for byte in request_:
            await client.send(bytes([byte]))
            await asyncio.sleep(0)
        status, headers, value = await client.answer()
        assert (status, value["path"], value["body"]) == (200, *expected(request_))
        assert "connection" not in headers
        await client.send(POST)
        assert (await client.answer())[2]["path"] == "/post"


async def test_an_offer_of_another_protocol_is_not_seen_and_the_rest_of_the_headers_is():
    async with serving() as served:
        client = await served.connect()
        await client.send(H2C.replace(b"HTTP2-Settings: ", b"Authorization: Bearer k\r\nX-Empty:\r\nHTTP2-Settings: "))
        headers = (await client.answer())[2]["headers"]
    assert "upgrade" not in headers
    assert (headers["authorization"], headers["x-empty"], headers["content-length"]) == ("Bearer k", "", "5")


@pytest.mark.parametrize("request_", [H2C_CLOSE, H2C.replace(b"HTTP/1.1", b"HTTP/1.0")], ids=["close", "1.0"])
async def test_an_offer_of_who_wants_no_further_answer_is_declined_too(request_: bytes):
    async with serving(limits=Limits(head_seconds=1)) as served:
        client = await served.connect()
        await client.send(request_)
        status, headers, value = await client.answer()
        assert (status, headers["connection"], value["body"]) == (200, "close", "hello")
        assert await client.rest() == b""


async def test_an_offer_with_expect_continue_is_told_to_continue():
    async with serving() as served:
        client = await served.connect()
        await client.send(H2C.replace(b"Host: x", b"Host: x\r\nExpect: 100-continue")[:-5])
        assert (await client.answer())[0] == 100
        await client.send(b"hello")
        assert (await client.answer())[2]["body"] == "hello"


async def test_who_expects_to_be_told_to_continue_is_told():
    async with serving() as served:
        client = await served.connect()
        await client.send(POST.replace(b"Host: x", b"Host: x\r\nExpect: 100-continue")[:-5])
        assert (await client.answer())[0] == 100
        await client.send(b"hello")
        assert (await client.answer())[2]["body"] == "hello"


async def test_trailers_are_not_headers():
    async with serving() as served:
        client = await served.connect()
        await client.send(CHUNKED)
        assert "x-person" not in (await client.answer())[2]["headers"]


async def test_http_1_0_is_answered_and_closed():
    async with serving() as served:
        client = await served.connect()
        await client.send(b"POST /old HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello")
        status, headers, value = await client.answer()
        assert (status, headers["connection"], value["body"]) == (200, "close", "hello")
        assert await client.rest() == b""


async def test_a_body_of_megabytes_arrives_whole():
    body = b"a" * 5_000_000
    async with serving() as served:
        client = await served.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\n" + body + GET)
        assert (await client.answer())[2]["body"] == body.decode()
        assert (await client.answer())[2]["path"] == "/get"


@pytest.mark.parametrize(
    "data",
    [
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        H2C.replace(b"Host: x", b"Content-Length: 6"),
        H2C.replace(b"Content-Length: 5", b"Transfer-Encoding: gzip"),
        POST.replace(b"Content-Length: 5", b"Transfer-Encoding: gzip"),
        CHUNKED.replace(b"Encoding: chunked", b"Encoding: gzip, chunked"),
        CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0"),
        CHUNKED.replace(b"3;", b"?;"),
        b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n" + GET,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=[
        "two-lengths",
        "length-and-chunks",
        "offer-lengths",
        "offer-coding",
        "coding",
        "two-codings",
        "chunked-1.0",
        "chunk",
        "connect",
        "http2",
        "tls",
    ],
)
async def test_what_is_no_request_is_refused_and_the_connection_closed(data: bytes):
    async with serving() as served:
        client = await served.connect()
        await client.send(data)
        status, headers, value = await client.answer()
        assert (status, headers["connection"], value["error"]["type"]) == (400, "close", "invalid_request_error")
        assert await client.rest() == b""


# --- strangers ---


@pytest.mark.parametrize(
    "endless",
    [
        b"GET / HTTP/1.1\r\nX: ",
        b"GET /",
        b"\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ",
    ],
    ids=["header", "path", "empty lines", "extension of a chunk", "trailer"],
)
async def test_what_has_no_end_is_cut(endless: bytes):
    async with serving() as served:
        client = await served.connect()
        more = b"\r\n" * 50_000 if endless == b"\r\n" else b"a" * 100_000
        await client.send(endless)
        with pytest.raises(ConnectionError):
            await client.send(more * 1000)


async def test_a_head_of_more_than_64_kb_is_told_so():
    header = b"X: " + b"a" * 1000 + b"\r\n"
    async with serving() as served:
        client = await served.connect()
        await client.send(b"GET /large HTTP/1.1\r\n" + header * 60 + b"\r\n")
        assert (await client.answer())[2]["path"] == "/large"
        await client.send(b"GET /larger HTTP/1.1\r\n" + header * 200 + b"\r\n")
        status, headers, value = await client.answer()
        assert (status, headers["connection"]) == (431, "close")
        assert "64 KB" in value["error"]["message"]
        assert await client.rest() == b""


async def test_a_head_of_more_than_64_kb_is_refused_also_where_an_offer_stands_in_it():
    async with serving() as served:
        client = await served.connect()
        await client.send(H2C.replace(b"Host: x", b"Host: x\r\nX: " + b"a" * 70_000))
        assert (await client.answer())[0] == 431


@pytest.mark.parametrize("part", [b"G", b"GET / HTTP/1.1\r\nHost: x\r\n", POST + b"GET / HT"])
async def test_a_head_that_does_not_come_to_its_end_is_closed(part: bytes):
    async with serving(limits=Limits(head_seconds=0.1)) as served:
        client = await served.connect()
        await client.send(part)
        if part.startswith(POST):
            assert (await client.answer())[0] == 200
        status, _, value = await client.answer()
        assert (status, value["error"]["code"]) == (408, "request_timeout")
        assert await client.rest() == b""


async def test_a_head_that_drips_is_closed_too():
    async with serving(limits=Limits(head_seconds=0.1)) as served:
        client = await served.connect()
        closed = asyncio.create_task(client.rest())
        await client.send(b"GET / HTTP/1.1\r\nX: ")
        while not closed.done():
            try:
                await client.send(b"a")
            except ConnectionError:
                break
            await asyncio.wait({closed}, timeout=0.01)
        assert (await closed).startswith(b"HTTP/1.1 408 ")


async def test_a_body_that_stalls_is_cut_and_the_application_told():
    left = asyncio.Event()

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    async with serving(app, limits=Limits(head_seconds=0.05, body_seconds=0.1)) as served:
        client = await served.connect()
        await client.send(POST[:-2])
        status, headers, value = await client.answer()
        assert (status, headers["connection"], value["error"]["code"]) == (408, "close", "request_timeout")
        await left.wait()
        assert await client.rest() == b""


async def test_a_mistake_behind_an_answer_that_has_begun_is_not_answered_into_it():
    begun = asyncio.Event()

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"hel", "more_body": True})
        begun.set()
        while (await receive())["type"] != "http.disconnect":
            pass

    async with serving(app) as served:
        client = await served.connect()
        await client.send(POST)
        await begun.wait()
        await client.send(b"\x16\x03\x01")
        assert b"400" not in await client.rest()


async def test_a_body_is_not_cut_while_it_is_the_application_that_does_not_read():
    gate = Gate()
    async with serving(gate, limits=Limits(head_seconds=0.02, body_seconds=0.02)) as served:
        client = await served.connect()
        sending = asyncio.create_task(
            client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n\r\n" + b"a" * 20_000_000)
        )
        await gate.arrived.get()
        # Many times the patience.
        await asyncio.wait({sending}, timeout=0.3)
        assert not sending.done()
        gate.open.set()
        await sending
        assert len((await client.answer())[2]["body"]) == 20_000_000


async def test_who_has_his_answer_and_never_ends_his_body_is_closed_without_a_second_answer():
    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await answer(send, "no")

    async with serving(app, limits=Limits(body_seconds=0.1, head_seconds=0.1)) as served:
        client = await served.connect()
        await client.send(POST[:-2])
        assert (await client.answer())[2] == "no"
        assert await client.rest() == b""


async def test_a_connection_on_which_nothing_is_asked_is_closed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("faregate.server.KEEP_ALIVE_SECONDS", 0.1)
    async with serving() as served:
        silent, answered = await served.connect(), await served.connect()
        await answered.send(GET)
        await answered.answer()
        await answered.send(b"\r\n")
        assert [await silent.rest(), await answered.rest()] == [b"", b""]


async def test_who_has_been_idle_has_no_more_time_for_a_head_than_who_comes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("faregate.server.KEEP_ALIVE_SECONDS", 600)
    async with serving(limits=Limits(head_seconds=0.1, body_seconds=600)) as served:
        client = await served.connect()
        await client.send(GET)
        await client.answer()
        await client.send(GET[:5])
        assert (await client.answer())[0] == 408


async def test_a_request_that_began_before_the_last_answer_is_not_closed_as_idle(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("faregate.server.KEEP_ALIVE_SECONDS", 0.1)
    gate = Gate()
    async with serving(gate) as served:
        client = await served.connect()
        await client.send(GET + GET[:5])
        await gate.arrived.get()
        gate.open.set()
        await client.answer()
        gate.open.clear()
        await client.send(GET[5:])
        await gate.arrived.get()
        reading = asyncio.create_task(client.answer())
        await asyncio.wait({reading}, timeout=0.3)
        gate.open.set()
        assert (await reading)[0] == 200


async def test_an_answer_that_takes_longer_than_the_patience_is_not_cut():
    gate = Gate()
    async with serving(gate, limits=Limits(head_seconds=0.02, body_seconds=0.02)) as served:
        client = await served.connect()
        # In two pieces, so that the clock is started; and with the beginning of another behind it.
        await client.send(POST[:-2])
        await gate.arrived.get()
        await client.send(POST[-2:] + GET[:5])
        reading = asyncio.create_task(client.answer())
        await asyncio.wait({reading}, timeout=0.3)
        assert not reading.done()
        gate.open.set()
        assert (await reading)[0] == 200


# --- stopping ---


async def test_a_stop_with_nothing_connected_does_not_wait():
    async with serving(grace=1000) as served:
        port = served.server.port
        await served.server.stop()
        with pytest.raises(ConnectionError):
            await asyncio.open_connection("127.0.0.1", port)


async def test_while_it_stops_what_arrives_is_answered_and_told_that_it_was_the_last():
    gate = Gate()
    async with serving(gate) as served:
        running, idle = await served.connect(), await served.connect()
        await running.send(POST)
        await gate.arrived.get()
        stopping = asyncio.create_task(served.server.stop())
        await asyncio.sleep(0)
        new = await served.connect()
        await idle.send(GET)
        await new.send(GET)
        assert [await gate.arrived.get(), await gate.arrived.get()] == ["/get", "/get"]
        gate.open.set()
        for client in (running, idle, new):
            status, headers, _ = await client.answer()
            assert (status, headers["connection"]) == (200, "close")
            assert await client.rest() == b""
        await stopping


async def test_of_many_connections_in_use_none_loses_a_request_to_the_stop():
    async with serving() as served:
        clients = [await served.connect() for _ in range(40)]
        stopping = asyncio.Event()

        async def use(client: Connection) -> int:
            number = 0
            while True:
                await client.send(POST)
                _, headers, _ = await client.answer()
                number += 1
                if number == 3:
                    stopping.set()
                if "connection" in headers:
                    return number

        async def stop() -> None:
            await stopping.wait()
            await served.server.stop()

        *numbers, _ = await asyncio.gather(*(use(client) for client in clients), stop())
        assert min(numbers) >= 1


async def test_connections_that_stay_idle_are_closed():
    async with serving(grace=1000) as served:
        client = await served.connect()
        await client.send(GET)
        await client.answer()
        stopping = asyncio.create_task(served.server.stop())
        assert await client.rest() == b""
        await stopping


@pytest.mark.parametrize("hurried", [True, False])
async def test_requests_that_are_cut_are_one_line_in_the_log_and_come_to_their_own_end(
    caplog: pytest.LogCaptureFixture, hurried: bool
):
    arrived, told, ended = asyncio.Semaphore(0), [], []

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        arrived.release()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.append(scope["path"])
            await asyncio.sleep(0.2)
            ended.append(scope["path"])
            raise

    async with serving(app, grace=1000 if hurried else 0.1) as served:
        for _ in range(3):
            await (await served.connect()).send(GET)
            await arrived.acquire()
        stopping = asyncio.create_task(served.server.stop())
        if hurried:
            await asyncio.sleep(0)
            served.server.hurry()
        await stopping
    assert told == ended == ["/get"] * 3
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.getMessage().startswith("3 requests were cut")
    assert record.exc_info is None


async def test_a_mistake_of_the_application_is_in_the_log_with_its_traceback(caplog: pytest.LogCaptureFixture):
    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["path"] == "/get":
            raise asyncio.CancelledError
        raise ValueError

    async with serving(app) as served:
        for request in (GET, POST):
            client = await served.connect()
            await client.send(request)
            assert (await client.rest()).startswith(b"HTTP/1.1 500 ")
    kinds = [record.exc_info[0] for record in caplog.records if record.exc_info]
    assert kinds == [asyncio.CancelledError, ValueError]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Only Linux can ignore who wants to connect.")
def test_who_waits_to_be_accepted_is_when_others_are_turned_away() -> None:
    sock = listen("127.0.0.1", 0)
    sock.setblocking(True)
    with sock, socket.create_connection(sock.getsockname()) as early:
        turn_away(sock)
        with socket.socket() as late:
            late.settimeout(0.1)
            with pytest.raises(TimeoutError):
                late.connect(sock.getsockname())
        accepted, _ = sock.accept()
        with accepted:
            # What it sends is not ignored.
            early.sendall(b"hello")
            assert accepted.recv(5) == b"hello"
            sock.settimeout(0.1)
            with pytest.raises(TimeoutError):
                sock.accept()
