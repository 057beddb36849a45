"""The connection of the link itself: over every kind of transport, on both loops, and with servers that misbehave."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import hiredis
import pytest
from authority import Authority
from both_loops import on_both_loops
from redis_server import RedisServer

from faregate.ledger.port import LedgerAway
from faregate.ledger.redis.dialer import dialer_for
from faregate.ledger.redis.link import ConnectionLost, Link

LARGE = b"x" * 1_000_000
GREETING = {b"INFO": b"$0\r\n\r\n", b"PING": b"+PONG\r\n", b"CLIENT": b"+OK\r\n"}

Answer = Callable[[list[bytes], asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def linked(url: str, call_timeout: float = 20.0) -> AsyncIterator[Link]:
    dialer = dialer_for(url, slot_key=b"{faregate}", connect_timeout=20, name="faregate")
    link = Link(dialer, call_timeout=call_timeout, connect_timeout=20, probe_every=0.02)
    link.start()
    try:
        yield link
    finally:
        await link.close()


@asynccontextmanager
async def answering(answer: Answer) -> AsyncIterator[str]:
    """A server that greets as Redis does, and answers as `answer` says. Yields the REDIS_URL for it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        commands = hiredis.Reader()
        while piece := await reader.read(65_536):
            commands.feed(piece)
            while (command := commands.gets()) is not False:
                if command[0] not in GREETING or len(command) > 3:
                    await answer(command, writer)
                else:
                    writer.write(GREETING[command[0]])
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@asynccontextmanager
async def behind_tls(port: int, authority: Authority) -> AsyncIterator[int]:
    """The port of a TLS server in front of `port`."""

    async def passing(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while piece := await source.read(65_536):
            sink.write(piece)
            await sink.drain()
        sink.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(passing(reader, back), passing(there, writer))

    server = await asyncio.start_server(relay, "127.0.0.1", 0, ssl=await asyncio.to_thread(authority.server))
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: that of a socket may not be long."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@pytest.fixture
def server(folder: Path) -> Iterator[RedisServer]:
    running = RedisServer(settings=f"unixsocket {folder}/redis.sock")
    running.start()
    yield running
    running.remove()


async def echoes(link: Link) -> None:
    """Small calls and one that takes many reads and writes, answered in their order."""
    sent = [b"%d" % number for number in range(300)]
    sent[150] = LARGE
    futures = [link.command("ECHO", text) for text in sent]
    assert await asyncio.gather(*futures) == sent
    assert await link.command("ECHO", "after") == b"after"
    assert (link.connects, link.losses, link.timeouts) == (1, 0, 0)


@on_both_loops
async def test_calls_are_answered_over_tcp(server: RedisServer) -> None:
    async with linked(server.url) as link:
        await echoes(link)


@on_both_loops
async def test_calls_are_answered_over_a_unix_socket(server: RedisServer, folder: Path) -> None:
    async with linked(f"unix://{folder}/redis.sock") as link:
        await echoes(link)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
@on_both_loops
async def test_calls_are_answered_over_tls(server: RedisServer, folder: Path) -> None:
    authority = await asyncio.to_thread(Authority, folder)
    async with (
        behind_tls(server.port, authority) as port,
        linked(f"rediss://127.0.0.1:{port}?ssl_ca_certs={authority.pem}") as link,
    ):
        await echoes(link)


@on_both_loops
async def test_a_server_that_does_not_read_is_not_written_to_without_end(server: RedisServer) -> None:
    async with linked(server.url) as link:
        await link.command("PING")
        server.pause()
        futures = []
        for number in range(60):
            futures.append(link.command("ECHO", b"%d" % number + LARGE))
            await asyncio.sleep(0.001)
        written = link.writes
        assert written < 60
        await asyncio.sleep(0.01)
        assert link.writes == written, "nothing is written before there is room"
        server.resume()

        replies = await asyncio.gather(*futures)

        assert [reply.removesuffix(LARGE) for reply in replies] == [b"%d" % number for number in range(60)]


@on_both_loops
async def test_a_reply_may_come_in_any_pieces() -> None:
    async def drip(command: list[bytes], writer: asyncio.StreamWriter) -> None:
        for byte in b"*3\r\n$5\r\na\r\nbc\r\n*2\r\n:17\r\n$-1\r\n$0\r\n\r\n":
            writer.write(bytes([byte]))
            await asyncio.sleep(0)

    async with answering(drip) as url, linked(url) as link:
        for _ in range(3):
            assert await link.command("GET", "this") == [b"a\r\nbc", [17, None], b""]


@on_both_loops
async def test_a_connection_on_which_a_reply_comes_that_nobody_asked_for_is_left() -> None:
    async def twice(command: list[bytes], writer: asyncio.StreamWriter) -> None:
        writer.write(b"+mine\r\n+whose?\r\n" if command[1] == b"twice" else b"+mine\r\n")

    async with answering(twice) as url, linked(url) as link:
        assert await link.command("GET", "twice") == b"mine"
        assert await link.command("GET", "once") == b"mine"
        assert (link.losses, link.connects) == (1, 2)


@on_both_loops
async def test_a_server_that_does_not_speak_the_protocol_is_left() -> None:
    async def garbled(command: list[bytes], writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with answering(garbled) as url, linked(url) as link:
        with pytest.raises(ConnectionLost, match="was lost: Protocol error"):
            await link.command("GET", "this")


@on_both_loops
async def test_a_server_that_hangs_up_says_nothing_of_what_it_has_done() -> None:
    async def hang_up(command: list[bytes], writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with answering(hang_up) as url, linked(url) as link:
        with pytest.raises(ConnectionLost, match="the server closed it"):
            await link.command("GET", "this")


@pytest.mark.parametrize("turns", range(4))
@on_both_loops
async def test_a_server_that_greets_and_hangs_up_is_noticed_whenever_that_is(turns: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        commands = hiredis.Reader()
        while piece := await reader.read(65_536):
            commands.feed(piece)
            while (command := commands.gets()) is not False:
                writer.write(GREETING[command[0]])
                if command[0] == b"PING":
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    writer.close()
                    return

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, linked(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}") as link:
        for _ in range(5):
            with pytest.raises(LedgerAway):
                await link.command("GET", "this")
