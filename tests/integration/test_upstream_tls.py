"""The upstream client and servers that speak TLS, well and badly, over real sockets and on both event loops."""

import asyncio
import hashlib
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import cast

import pytest
from authority import Authority
from both_loops import on_both_loops

from faregate.gateway.http1 import Cut, NoAnswer, NotReached
from faregate.gateway.tcp import connect
from faregate.gateway.tls import Tls, TlsPeer
from faregate.gateway.upstream import Upstream, UpstreamSettings

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
Serve = Callable[[Reader, Writer], Awaitable[None]]

MEBIBYTE = 1024 * 1024


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(autouse=True)
def believed(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.pem))


def client_of(port: int, connect_timeout: float = 20.0) -> Upstream:
    """A client that needs no proxy."""
    url = f"https://127.0.0.1:{port}/api/v1"
    return Upstream(UpstreamSettings(url, "sk-or-v1-test", None, "T", connect_timeout, 20.0, 20.0))


@asynccontextmanager
async def upstream_that(
    serve: Serve, context: ssl.SSLContext | None, patience: float = 20.0
) -> AsyncIterator[Upstream]:
    """A client of a server that handles each connection by `serve`."""

    async def handle(reader: Reader, writer: Writer) -> None:
        try:
            await serve(reader, writer)
        except (ConnectionError, ssl.SSLError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    client = client_of(server.sockets[0].getsockname()[1], patience)
    try:
        yield client
    finally:
        client.close()
        server.close()


@contextmanager
def rude_server(context: ssl.SSLContext, answer: bytes, *, goodbye: bool) -> Iterator[int]:
    """A server that answers one request and ends the connection, with or without the goodbye of TLS."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        raw, _ = listener.accept()
        with context.wrap_socket(raw, server_side=True) as secured:
            while b"\r\n\r\n{}" not in (secured.recv(65_536)):
                pass
            secured.sendall(answer)
            if goodbye:
                secured.unwrap().close()
            else:
                secured.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        thread.join(20)
        listener.close()


async def request(reader: Reader) -> bytes:
    """The body of one request."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next((int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length")), 0)
    return await reader.readexactly(length)


async def post(client: Upstream, body: bytes = b"{}") -> tuple[int, bytes]:
    """Status and whole body of the answer to a POST."""
    exchange = await client.post(b"/chat/completions", body, stream=True)
    answer = await client.read_all(exchange, 100 * MEBIBYTE)
    client.done(exchange)
    return exchange.status, answer


@on_both_loops
async def test_requests_go_over_one_verified_connection(authority: Authority) -> None:
    chosen: list[tuple[str, str]] = []

    async def serve(reader: Reader, writer: Writer) -> None:
        tls = writer.get_extra_info("ssl_object")
        chosen.append((tls.version(), tls.selected_alpn_protocol()))
        while True:
            body = await request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async with upstream_that(serve, authority.server()) as client:
        for at in range(5):
            assert await post(client, b"%d" % at) == (200, b"%d" % at)
    assert chosen == [("TLSv1.3", "http/1.1")]


@on_both_loops
async def test_the_next_connection_goes_on_with_the_session_of_the_first(authority: Authority) -> None:
    resumed: list[bool] = []

    async def serve(reader: Reader, writer: Writer) -> None:
        resumed.append(writer.get_extra_info("ssl_object").session_reused)
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")

    async with upstream_that(serve, authority.server()) as client:
        for _ in range(3):
            assert await post(client) == (200, b"ok")
    assert resumed == [False, True, True]


@on_both_loops
async def test_a_connection_does_not_wait_to_send_little_and_notices_a_dead_peer(authority: Authority) -> None:
    async def serve(reader: Reader, writer: Writer) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await reader.read()

    async with upstream_that(serve, authority.server()) as client:
        exchange = await client.post(b"/x", b"{}", stream=True)
        sock = exchange.connection._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert await client.read_all(exchange, 100) == b"ok"
        client.done(exchange)


@on_both_loops
async def test_large_bodies_pass_both_ways(authority: Authority) -> None:
    sent = bytes(range(256)) * 4096 * 32
    got: list[bytes] = []

    async def serve(reader: Reader, writer: Writer) -> None:
        got.append(hashlib.sha256(await request(reader)).digest())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(sent))
        for at in range(0, len(sent), MEBIBYTE):
            writer.write(sent[at : at + MEBIBYTE])
            await writer.drain()

    async with upstream_that(serve, authority.server()) as client:
        status, answer = await post(client, sent)
    assert status == 200
    assert got == [hashlib.sha256(sent).digest()]
    assert hashlib.sha256(answer).digest() == got[0]


class Greeted(asyncio.Protocol):
    """Knows when the server has said something: then nothing of it is on its way."""

    def __init__(self) -> None:
        self.heard = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.heard.set()


@on_both_loops
async def test_a_close_comes_after_all_that_was_written(authority: Authority) -> None:
    sent = bytes(range(256)) * 4096 * 64
    got = hashlib.sha256()
    context = authority.server()

    def serve() -> None:
        raw, _ = listener.accept()
        with context.wrap_socket(raw, server_side=True, suppress_ragged_eofs=False) as secured:
            secured.sendall(b"hello")
            while data := secured.recv(65_536):
                got.update(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(asyncio.to_thread(serve))
        peer = TlsPeer(authority.client(), "127.0.0.1")
        _, tls = await connect(lambda: Tls(Greeted(), peer), "127.0.0.1", listener.getsockname()[1])
        await tls.secured()
        await cast(Greeted, tls.get_protocol()).heard.wait()
        tls.write(sent)
        waiting = tls.get_write_buffer_size()
        assert waiting > len(sent) / 2
        tls.close()
        await serving
    assert got.digest() == hashlib.sha256(sent).digest()


@on_both_loops
async def test_an_upstream_that_outruns_the_reader_is_paused(authority: Authority) -> None:
    sent = 0
    stalled = asyncio.Event()

    async def serve(reader: Reader, writer: Writer) -> None:
        nonlocal sent
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 * MEBIBYTE))
        piece = b"x" * 65_536
        for _ in range(1024):
            writer.write(piece)
            try:
                async with asyncio.timeout(0.5):
                    await writer.drain()
            except TimeoutError:
                stalled.set()
                await writer.drain()
            sent += len(piece)

    async with upstream_that(serve, authority.server()) as client:
        exchange = await client.post(b"/x", b"{}", stream=True)
        await stalled.wait()
        # The kernel's buffers take some megabytes; the rest of the 64 MB is still with the sender.
        assert sent < 40 * MEBIBYTE
        total = 0
        while data := await exchange.read(20):
            total += len(data)
        assert total == 64 * MEBIBYTE
        client.done(exchange)


@on_both_loops
async def test_an_answer_until_close_ends_with_a_goodbye(authority: Authority) -> None:
    with rude_server(authority.server(), b"HTTP/1.1 200 OK\r\n\r\nall of it", goodbye=True) as port:
        assert await post(client_of(port)) == (200, b"all of it")


@on_both_loops
async def test_an_answer_until_close_that_ends_without_a_goodbye_is_cut(authority: Authority) -> None:
    with rude_server(authority.server(), b"HTTP/1.1 200 OK\r\n\r\nnot all of it", goodbye=False) as port:
        client = client_of(port)
        exchange = await client.post(b"/x", b"{}", stream=True)
        assert await exchange.read(20) == b"not all of it"
        with pytest.raises(Cut):
            await exchange.read(20)
        client.done(exchange)


@on_both_loops
async def test_an_answer_of_known_length_needs_no_goodbye(authority: Authority) -> None:
    with rude_server(authority.server(), b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", goodbye=False) as port:
        assert await post(client_of(port)) == (200, b"ok")


@on_both_loops
async def test_an_upstream_that_ends_before_an_answer_gave_none(authority: Authority) -> None:
    async def serve(reader: Reader, writer: Writer) -> None:
        await request(reader)

    async with upstream_that(serve, authority.server()) as client:
        with pytest.raises(NoAnswer):
            await post(client)


@on_both_loops
async def test_leaving_closes_the_connection(authority: Authority) -> None:
    closed = asyncio.Event()

    async def serve(reader: Reader, writer: Writer) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        try:
            await reader.read()
        finally:
            closed.set()

    async with upstream_that(serve, authority.server()) as client:
        exchange = await client.post(b"/x", b"{}", stream=True)
        exchange.abort()
        await closed.wait()
        client.done(exchange)


async def never(reader: Reader, writer: Writer) -> None:
    """Serve nobody."""
    raise AssertionError("a request reached a server that is not to be believed")


@pytest.mark.parametrize(
    ("name", "days", "why"),
    [
        ("other.test", 2, "not valid for '127.0.0.1'"),
        ("127.0.0.2", 2, "not valid for '127.0.0.1'"),
        ("127.0.0.1", 0, "certificate has expired"),
    ],
)
@on_both_loops
async def test_a_certificate_that_is_wrong_is_told_in_a_sentence(
    authority: Authority, name: str, days: int, why: str
) -> None:
    async with upstream_that(never, authority.server(name, days)) as client:
        with pytest.raises(NotReached) as failed:
            await post(client)
    assert str(failed.value).startswith("no connection to 127.0.0.1:")
    assert "its certificate is not accepted: " in str(failed.value)
    assert why in str(failed.value)


@on_both_loops
async def test_an_authority_that_nobody_named_is_not_believed(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    async with upstream_that(never, authority.server()) as client:
        with pytest.raises(NotReached, match=r"certificate is not accepted: unable to get local issuer.*SSL_CERT_FILE"):
            await post(client)


async def talks_http(reader: Reader, writer: Writer) -> None:
    await reader.read(10)
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")


async def hangs_up(reader: Reader, writer: Writer) -> None:
    await reader.read(10)


@on_both_loops
async def test_a_server_without_tls_is_not_reached(authority: Authority) -> None:
    async with upstream_that(talks_http, None) as client:
        with pytest.raises(NotReached, match="no TLS with it: wrong version number"):
            await post(client)


@on_both_loops
async def test_a_server_that_hangs_up_in_the_handshake_is_not_reached(authority: Authority) -> None:
    async with upstream_that(hangs_up, None) as client:
        with pytest.raises(NotReached, match=r"no connection to 127\.0\.0\.1:"):
            await post(client)


@on_both_loops
async def test_a_handshake_that_does_not_end_is_given_up_in_the_time_of_a_connection(authority: Authority) -> None:
    left = asyncio.Event()

    async def serve(reader: Reader, writer: Writer) -> None:
        await reader.read()
        left.set()

    async with upstream_that(serve, None, 0.1) as client:
        with pytest.raises(NotReached, match=r"within 0\.1 s"):
            await post(client)
        await left.wait()


class OpenSslServer:
    """OpenSSL's own server. On a line of one letter it does what others do after gigabytes."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self._process = process
        self.port = port

    async def gets(self, what: bytes) -> None:
        """Wait until `what` has come in."""
        await self._process.stdout.readuntil(what)

    async def sends(self, what: bytes) -> None:
        self._process.stdin.write(what)
        await self._process.stdin.drain()


@asynccontextmanager
async def openssl_server(authority: Authority, version: str) -> AsyncIterator[OpenSslServer]:
    certificate, key = authority.certificate("127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        *("openssl", "s_server", "-accept", str(port), "-cert", str(certificate), "-key", str(key), version),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await process.stdout.readuntil(b"ACCEPT")
        yield OpenSslServer(process, port)
    finally:
        process.kill()
        await process.communicate()


@pytest.mark.parametrize(
    ("version", "command"),
    [("-tls1_3", b"K\n"), ("-tls1_3", b"k\n"), ("-tls1_2", b"R\n")],
    ids=["new keys both ways", "new keys", "renegotiation"],
)
@on_both_loops
async def test_what_tls_does_in_mid_stream_leaves_the_answer_alone(
    authority: Authority, version: str, command: bytes
) -> None:
    async with openssl_server(authority, version) as server:
        client = client_of(server.port)
        asking = asyncio.create_task(client.post(b"/first", b"{}", stream=True))
        await server.gets(b"{}")
        await server.sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        exchange = await asking
        assert await exchange.read(20) == b"hello"
        await server.sends(command)
        # A command is one only where it is all that is read.
        await exchange.ready(0.3)
        await server.sends(b"6\r\n world\r\n0\r\n\r\n")
        assert await client.read_all(exchange, 100) == b" world"
        client.done(exchange)
        again = asyncio.create_task(client.post(b"/second", b'{"again":1}', stream=True))
        await server.gets(b'{"again":1}')
        await server.sends(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        assert await client.read_all(await again, 100) == b"ok"
        client.close()


@on_both_loops
async def test_a_request_that_meets_a_renegotiation_waits_for_its_end(authority: Authority) -> None:
    open_ways: list[Writer] = []
    may_pass, asked = asyncio.Event(), asyncio.Event()
    may_pass.set()

    async def relay(reader: Reader, writer: Writer) -> None:
        there, away = await asyncio.open_connection("127.0.0.1", server.port)
        open_ways.extend((writer, away))

        async def back() -> None:
            while data := await there.read(65_536):
                await may_pass.wait()
                writer.write(data)

        answers = asyncio.create_task(back())
        while data := await reader.read(65_536):
            if asking_anew:
                may_pass.clear()
                asked.set()
            away.write(data)
        answers.cancel()

    asking_anew = False
    async with openssl_server(authority, "-tls1_2") as server:
        way = await asyncio.start_server(relay, "127.0.0.1", 0)
        client = client_of(way.sockets[0].getsockname()[1])
        first = asyncio.create_task(client.post(b"/first", b"{}", stream=True))
        await server.gets(b"{}")
        await server.sends(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        exchange = await first
        assert await client.read_all(exchange, 100) == b"ok"
        client.done(exchange)
        # From here, our half of the new handshake goes to the server, and its half does not come back.
        asking_anew = True
        await server.sends(b"R\n")
        await asked.wait()
        asking_anew = False
        again = asyncio.create_task(client.post(b"/second", b'{"again":1}', stream=True))
        await asyncio.sleep(0)
        assert exchange.connection._transport.get_write_buffer_size() > 0
        may_pass.set()
        await server.gets(b'{"again":1}')
        await server.sends(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        assert await client.read_all(await again, 100) == b"ok"
        client.close()
        way.close()
        for writer in open_ways:
            writer.close()


@on_both_loops
async def test_a_server_that_closes_right_after_the_handshake_gave_no_answer(authority: Authority) -> None:
    async def serve(reader: Reader, writer: Writer) -> None:
        writer.close()

    # TLS 1.2 alone: there the server's is the last word of the handshake, and its goodbye comes with it.
    context = authority.server()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with upstream_that(serve, context) as client:
        with pytest.raises((NotReached, NoAnswer)):
            await post(client)
