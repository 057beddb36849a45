"""REDIS_URL in all its forms against real servers, and what people read when it does not work."""

import asyncio
import contextlib
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis.asyncio.connection import AbstractConnection
from redis_server import RedisCluster, RedisSentinel, RedisServer, programs, wait_until

from faregate.ledger.port import LedgerAway
from faregate.ledger.redis.dialer import Dialer, dialer_for

PASSWORD = "s3cr3t:/@?"
QUOTED = "s3cr3t%3A%2F%40%3F"


@pytest.fixture
def one() -> Iterator[RedisServer]:
    server = RedisServer()
    server.start()
    yield server
    server.remove()


@pytest.fixture(params=programs())
def guarded(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A server that asks for a password, and has a second user."""
    settings = f'requirepass "{PASSWORD}"\nuser gate on ">{PASSWORD}" ~* &* +@all'
    server = RedisServer(programs()[request.param], settings=settings)
    server.start()
    yield server
    server.remove()


def dialer(url: str, connect_timeout: float = 5.0) -> Dialer:
    return dialer_for(url, slot_key=b"{faregate}", connect_timeout=connect_timeout, name="faregate")


@contextlib.asynccontextmanager
async def dialled(url: str) -> AsyncIterator[AbstractConnection]:
    connection = await dialer(url).dial()
    try:
        yield connection
    finally:
        await connection.disconnect()


async def answer(connection: AbstractConnection, *command: str) -> object:
    await connection.send_command(*command)
    return await connection.read_response()


async def away(url: str, connect_timeout: float = 5.0) -> str:
    """The sentence that people read instead of a connection."""
    with pytest.raises(LedgerAway) as raised:
        await dialer(url, connect_timeout).dial()
    assert PASSWORD not in str(raised.value)
    assert QUOTED not in str(raised.value)
    return str(raised.value)


def certified(folder: Path) -> tuple[Path, Path]:
    """A key and a certificate of its own for 127.0.0.1."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    made = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost")
    files = ("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate)
    subprocess.run(["openssl", *made, *files], check=True, capture_output=True)
    return key, certificate


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
async def test_a_server_is_reached_by_its_own_name_in_the_database_of_the_url(one: RedisServer, scheme: str) -> None:
    async with dialled(f"{scheme}://127.0.0.1:{one.port}/3") as connection:
        client = await answer(connection, "CLIENT", "LIST")

    assert b"name=faregate " in client
    assert b" db=3 " in client


@pytest.mark.parametrize("credentials", [f":{QUOTED}", f"default:{QUOTED}", f"gate:{QUOTED}"])
async def test_passwords_may_have_any_characters(guarded: RedisServer, credentials: str) -> None:
    url = f"redis://{credentials}@127.0.0.1:{guarded.port}"

    async with dialled(url) as connection:
        assert await answer(connection, "PING") == b"PONG"
    assert "s3cr3t" not in dialer(url).describe


@pytest.mark.parametrize("credentials", ["", ":s3cr3t-wrong@", f"nobody:{QUOTED}@"])
async def test_a_wrong_password_is_told_without_telling_it(guarded: RedisServer, credentials: str) -> None:
    said = await away(f"redis://{credentials}127.0.0.1:{guarded.port}")

    assert f"127.0.0.1:{guarded.port} does not accept the user name and password of REDIS_URL" in said
    assert "s3cr3t" not in said


async def test_a_unix_socket_is_reached() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(settings=f"unixsocket {folder}/redis.sock")
        server.start()
        try:
            async with dialled(f"unix://{folder}/redis.sock?db=2") as connection:
                assert b" db=2 " in await answer(connection, "CLIENT", "LIST")
        finally:
            server.remove()
        assert f"{folder}/redis.sock is not reachable" in await away(f"unix://{folder}/redis.sock")


async def test_a_server_that_is_not_there_is_told(one: RedisServer) -> None:
    one.kill()

    said = await away(f"redis://:{QUOTED}@127.0.0.1:{one.port}")

    assert said.startswith(f"Redis at 127.0.0.1:{one.port} is not reachable: ")
    assert said.endswith(" Check that it runs, and the network.")


async def test_a_server_that_does_not_answer_is_told(one: RedisServer) -> None:
    one.pause()

    said = await away(f"redis://127.0.0.1:{one.port}", connect_timeout=0.05)

    assert said.startswith(f"Redis at 127.0.0.1:{one.port} did not answer within 50 ms.")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
async def test_tls_believes_only_certificates_that_can_be_verified(one: RedisServer, tmp_path: Path) -> None:
    key, certificate = await asyncio.to_thread(certified, tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", one.port)

        async def passing(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while piece := await source.read(65_536):
                sink.write(piece)
            sink.close()

        await asyncio.gather(passing(reader, back), passing(there, writer))

    server = await asyncio.start_server(relay, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    async with server:
        for scheme in ("rediss", "valkeys"):
            async with dialled(f"{scheme}://127.0.0.1:{port}?ssl_ca_certs={certificate}") as connection:
                assert await answer(connection, "PING") == b"PONG"
        assert "certificate verify failed" in await away(f"rediss://127.0.0.1:{port}")


@pytest.mark.parametrize("program", programs())
async def test_sentinels_are_asked_for_the_master_each_time(program: str) -> None:
    group = RedisSentinel(programs()[program])
    group.start()
    try:
        # The first sentinel is not there; the second answers.
        url = group.url.replace("127.0.0.1", "127.0.0.1:1,127.0.0.1", 1)
        finder = dialer(url)
        first = await finder.dial()
        assert (await answer(first, "CONFIG", "GET", "port"))[1] == str(group.master.port).encode()
        await first.disconnect()

        new = await asyncio.to_thread(group.fail_over)

        second = await finder.dial()
        assert (await answer(second, "CONFIG", "GET", "port"))[1] == str(new.port).encode()
        await second.disconnect()
        assert "knows no master other" in await away(group.url.replace("/fares", "/other"))
    finally:
        group.remove()


@pytest.mark.parametrize("program", programs())
async def test_in_a_cluster_the_node_that_has_our_slot_is_found(program: str) -> None:
    nodes = [RedisServer(programs()[program], cluster=True) for _ in range(2)]
    try:
        for node in nodes:
            node.start()
        seed, owner = nodes
        with seed.client() as client, owner.client() as other:
            slot = client.execute_command("CLUSTER KEYSLOT", "{faregate}")
            other.execute_command("CLUSTER ADDSLOTS", slot)
            client.execute_command("CLUSTER MEET", "127.0.0.1", owner.port)
            wait_until(lambda: client.execute_command("CLUSTER SLOTS"), "The nodes do not meet")
        url = f"redis+cluster://127.0.0.1:1,127.0.0.1:{seed.port}"
        finder = dialer(url)

        connection = await finder.dial()
        assert (await answer(connection, "CONFIG", "GET", "port"))[1] == str(owner.port).encode()
        await connection.disconnect()

        # The node of the URL is gone; the others are remembered.
        seed.kill()
        connection = await finder.dial()
        assert (await answer(connection, "CONFIG", "GET", "port"))[1] == str(owner.port).encode()
        await connection.disconnect()

        with owner.client() as other:
            other.execute_command("CLUSTER DELSLOTS", slot)
        assert f"has slot {slot}" in await away(f"redis+cluster://127.0.0.1:{owner.port}")
    finally:
        for node in nodes:
            node.remove()


async def test_a_cluster_of_one_node_is_reached() -> None:
    cluster = RedisCluster()
    cluster.start()
    try:
        async with dialled(cluster.url) as connection:
            assert await answer(connection, "SET", "{faregate}a", "b") == b"OK"
    finally:
        cluster.remove()


async def test_a_server_that_is_no_cluster_says_so(one: RedisServer) -> None:
    assert "cluster support disabled" in await away(f"redis+cluster://127.0.0.1:{one.port}")


@pytest.mark.parametrize(
    ("url", "described"),
    [
        ("redis://:s3cr3t@host", "Redis at host:6379"),
        ("rediss://user:s3cr3t@[::1]:7000/1", "Redis at [::1]:7000"),
        ("unix://:s3cr3t@/run/redis.sock", "Redis at /run/redis.sock"),
        ("redis+sentinel://:s3cr3t@a,b:1/fares/2", "Redis (fares, sentinels a:26379, b:1)"),
        ("rediss+cluster://:s3cr3t@a:7000,b", "the Redis cluster at a:7000, b:6379"),
        # Newer versions of Python take neither for a URL.
        ("redis+cluster://:s3cr3t@a:7000,[::1]:7001,[::2]", "the Redis cluster at a:7000, [::1]:7001, [::2]:6379"),
        ("redis://:s3[cr3t@host", "Redis at host:6379"),
    ],
)
def test_where_it_looks_is_told_without_the_password(url: str, described: str) -> None:
    assert dialer(url).describe == described


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://s3cr3t@host", "should begin with redis://"),
        ("redis+other://s3cr3t@host", "should begin with redis://"),
        ("redis://:s3cr3t@", "should name a host"),
        ("redis://:s3cr3t@host:port", "should have hosts with ports"),
        ("redis://:s3cr3t@host:0", "should name a host"),
        ("redis://:s3cr3t@host:70000", "should have hosts with ports"),
        ("redis://:s3cr3t@host/one", "should end with the number of a database"),
        ("redis://:s3cr3t@host/-1", "should end with the number of a database"),
        ("redis://:s3cr3t@a,b", "should name one host"),
        ("redis://:s3#cr3t@host", "write %23"),
        ("redis://:s3cr3t?@host", "write %3F"),
        ("redis://:s3/cr3t@host", "write %2F"),
        ("redis://:s3cr3t@host?ssl_cert_reqs=none", "should have no options"),
        ("rediss://:s3cr3t@host?ssl_cert_reqs=none", "should have no options but ssl_ca_certs"),
        ("s3cr3t@host", "should be a URL"),
        ("redis://[s3cr3t", "should have hosts with ports"),
        ("unix://s3cr3t", "should be unix:///path"),
        ("redis+sentinel://:s3cr3t@host", "should name the master"),
        ("redis+sentinel://:s3cr3t@host/fares/x", "should end with the number of a database"),
        ("redis+cluster://:s3cr3t@host/1", "should have no database number"),
    ],
)
def test_a_url_that_cannot_work_is_refused_without_repeating_it(url: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as raised:
        dialer(url)

    assert "cr3t" not in str(raised.value)
    assert raised.value.__cause__ is None
