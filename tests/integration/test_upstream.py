"""The upstream client against servers that behave well, oddly and badly, over real sockets."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from faregate.gateway import upstream
from faregate.gateway.http1 import Cut, NoAnswer, NotReached, TooSlow
from faregate.gateway.upstream import Upstream, UpstreamSettings

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
Serve = Callable[[Reader, Writer, int], Awaitable[None]]


@asynccontextmanager
async def upstream_that(serve: Serve, **patience: float) -> AsyncIterator[Upstream]:
    """A client of a server whose n-th connection is handled by `serve(reader, writer, n)`."""
    count = 0

    async def handle(reader: Reader, writer: Writer) -> None:
        nonlocal count
        count += 1
        try:
            await serve(reader, writer, count)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = Upstream(settings(f"http://127.0.0.1:{port}/api/v1", **patience))
    try:
        yield client
    finally:
        client.close()
        server.close()


def settings(url: str, **patience: float) -> UpstreamSettings:
    """Settings with short, but not too short, patience."""
    times = {"connect_timeout": 5.0, "first_byte_timeout": 5.0, "idle_timeout": 5.0} | patience
    return UpstreamSettings(base_url=url, api_key="sk-or-v1-test", http_referer="https://x.org", title="T", **times)


async def request(reader: Reader) -> tuple[bytes, bytes]:
    """Read one request: head and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0
    )
    return head, await reader.readexactly(length)


async def answers(reader: Reader, writer: Writer, *pieces: bytes) -> None:
    """Answer one request with `pieces`, each written by itself."""
    await request(reader)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()


def fixed(*pieces: bytes) -> Serve:
    """A server that answers every connection's first request with `pieces` and closes."""

    async def serve(reader: Reader, writer: Writer, _: int) -> None:
        await answers(reader, writer, *pieces)

    return serve


async def post(client: Upstream) -> tuple[int, bytes]:
    """Status and whole body of a POST."""
    exchange = await client.post(b"/chat/completions", b'{"a":1}', stream=True)
    body = await client.read_all(exchange, 10_000_000)
    client.done(exchange)
    return exchange.status, body


@pytest.mark.parametrize(
    ("pieces", "body"),
    [
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"], b"hello"),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"], b"hello"),
        (
            [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nT: x\r\n\r\n"],
            b"hello",
        ),
        ([b"HTTP/1.1 200 OK\r\n\r\nhello until close"], b"hello until close"),
        ([b"HTTP/1.0 200 OK\r\n\r\nold"], b"old"),
        ([b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"], b"ok"),
        ([b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"], b"ok"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"], b""),
        ([b"HTTP/1.1 204 No Content\r\n\r\n"], b""),
    ],
)
async def test_every_framing_is_read_to_its_end(pieces: list[bytes], body: bytes) -> None:
    async with upstream_that(fixed(*pieces)) as client:
        assert (await post(client))[1] == body


async def test_an_answer_split_at_every_byte_is_the_same_answer() -> None:
    whole = b"HTTP/1.1 200 OK\r\nX-Generation-Id: gen-1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    async with upstream_that(fixed(*(bytes([byte]) for byte in whole))) as client:
        exchange = await client.post(b"/x", b"{}", stream=True)
        assert exchange.header(b"x-generation-id") == b"gen-1"
        assert await client.read_all(exchange, 100) == b"abc"
        client.done(exchange)


async def test_our_key_and_attribution_travel_and_nothing_is_packed() -> None:
    heads: list[bytes] = []

    async def serve(reader: Reader, writer: Writer, _: int) -> None:
        heads.append((await request(reader))[0])
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with upstream_that(serve) as client:
        await post(client)
    lines = heads[0].decode().lower().split("\r\n")
    assert lines[0] == "post /api/v1/chat/completions http/1.1"
    assert "authorization: bearer sk-or-v1-test" in lines
    assert "accept-encoding: identity" in lines
    assert "http-referer: https://x.org" in lines
    assert "x-title: t" in lines


async def test_a_clean_connection_is_used_again() -> None:
    connections = []

    async def serve(reader: Reader, writer: Writer, number: int) -> None:
        connections.append(number)
        while True:
            await answers(reader, writer, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with upstream_that(serve) as client:
        for _ in range(5):
            assert await post(client) == (200, b"ok")
    assert connections == [1]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokgarbage",
    ],
)
async def test_a_connection_that_is_not_clean_is_not_used_again(answer: bytes) -> None:
    connections = []

    async def serve(reader: Reader, writer: Writer, number: int) -> None:
        connections.append(number)
        await answers(reader, writer, answer)
        await reader.read()

    async with upstream_that(serve) as client:
        assert await post(client) == (200, b"ok")
        assert await post(client) == (200, b"ok")
    assert connections == [1, 2]


async def test_a_request_on_a_connection_that_upstream_had_closed_is_sent_once_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("faregate.gateway.upstream.UNUSED_SECONDS", 0.0)

    async def serve(reader: Reader, writer: Writer, number: int) -> None:
        await answers(reader, writer, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        if number == 1:
            # The next request arrives, and its connection ends without a byte of an answer.
            await request(reader)

    async with upstream_that(serve) as client:
        assert await post(client) == (200, b"ok")
        assert await post(client) == (200, b"ok")


@pytest.mark.parametrize("late", [True, False])
async def test_a_request_that_upstream_may_have_worked_on_is_not_sent_again(
    monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    # Closed too late after the request, or too soon after the one before, for an idle connection.
    monkeypatch.setattr("faregate.gateway.upstream.CROSSED_SECONDS", 0.0 if late else 60.0)
    monkeypatch.setattr("faregate.gateway.upstream.UNUSED_SECONDS", 0.0 if late else 60.0)
    requests = 0

    async def serve(reader: Reader, writer: Writer, _: int) -> None:
        nonlocal requests
        await answers(reader, writer, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await request(reader)
        requests += 1

    async with upstream_that(serve) as client:
        assert await post(client) == (200, b"ok")
        with pytest.raises(NoAnswer):
            await post(client)
    assert requests == 1


async def test_a_new_connection_that_ends_without_an_answer_is_not_tried_again() -> None:
    connections = []

    async def serve(reader: Reader, writer: Writer, number: int) -> None:
        connections.append(number)
        await request(reader)

    async with upstream_that(serve) as client:
        with pytest.raises(NoAnswer):
            await post(client)
    assert connections == [1]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n",
        b"this is not HTTP\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Le",
    ],
)
async def test_an_answer_that_breaks_off_or_is_not_http_is_a_failure(answer: bytes) -> None:
    async with upstream_that(fixed(answer)) as client:
        with pytest.raises(Cut):
            await post(client)


async def test_what_arrived_before_a_cut_is_handed_out() -> None:
    async with upstream_that(fixed(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort")) as client:
        exchange = await client.post(b"/x", b"{}", stream=True)
        assert await exchange.read(5) == b"short"
        with pytest.raises(Cut):
            await exchange.read(5)
        client.done(exchange)


async def test_nobody_there_is_told_apart_from_nobody_answering() -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    client = Upstream(settings(f"http://127.0.0.1:{port}"))
    with pytest.raises(NotReached):
        await post(client)


async def test_a_silent_upstream_is_too_slow_and_may_still_answer() -> None:
    go = asyncio.Event()

    async def serve(reader: Reader, writer: Writer, _: int) -> None:
        await request(reader)
        await go.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate")

    async with upstream_that(serve, first_byte_timeout=0.05) as client:
        with pytest.raises(TooSlow) as slow:
            await post(client)
        go.set()
        await slow.value.exchange.answered(5)
        assert await client.read_all(slow.value.exchange, 100) == b"late"
        client.done(slow.value.exchange)


async def test_silence_in_mid_stream_is_too_slow() -> None:
    leave = asyncio.Event()

    async def serve(reader: Reader, writer: Writer, _: int) -> None:
        await answers(reader, writer, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
        await leave.wait()

    async with upstream_that(serve, idle_timeout=0.05) as client:
        with pytest.raises(TooSlow):
            await post(client)
        leave.set()


async def test_an_upstream_that_outruns_the_reader_is_paused() -> None:
    sent = 0
    stalled = asyncio.Event()

    async def serve(reader: Reader, writer: Writer, _: int) -> None:
        nonlocal sent
        await request(reader)
        writer.transport.set_write_buffer_limits(high=0)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        piece = b"x" * 65_536
        for _ in range(1_000):
            writer.write(piece)
            try:
                async with asyncio.timeout(0.5):
                    await writer.drain()
            except TimeoutError:
                stalled.set()
                await writer.drain()
            sent += len(piece)

    async with upstream_that(serve) as client:
        exchange = await client.post(b"/x", b"{}", stream=True)
        async with asyncio.timeout(20):
            await stalled.wait()
        # The kernel's buffers take some megabytes; the rest of the 64 MB is still with the sender.
        assert sent < 40_000_000
        total = 0
        while data := await exchange.read(5):
            total += len(data)
        assert total == 65_536_000
        client.done(exchange)


async def test_leaving_closes_the_connection() -> None:
    closed = asyncio.Event()

    async def serve(reader: Reader, writer: Writer, _: int) -> None:
        await answers(reader, writer, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await reader.read()
        closed.set()

    async with upstream_that(serve) as client:
        exchange = await client.post(b"/x", b"{}", stream=True)
        exchange.abort()
        async with asyncio.timeout(5):
            await closed.wait()
        client.done(exchange)


async def test_what_a_rush_has_opened_is_closed_when_it_is_of_no_use_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "IDLE_SECONDS", 0.05)
    opened: list[asyncio.StreamWriter] = []
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _number: int) -> None:
        opened.append(writer)
        try:
            while True:
                await answers(reader, writer, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        finally:
            opened.remove(writer)
            if not opened:
                closed.set()

    async with upstream_that(serve) as client:
        await asyncio.gather(*(client.get_json(b"/models", 100) for _ in range(30)))
        # Nobody asks any more.
        async with asyncio.timeout(20):
            await closed.wait()
