"""A host with several addresses is reached by whichever answers first."""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from both_loops import on_both_loops

from faregate.gateway import tcp
from faregate.gateway.tcp import connect

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.1 is the only one of its kind")


class Greeted(asyncio.Protocol):
    """Hears who answered."""

    def __init__(self) -> None:
        self.heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.heard.set_result(data)


@asynccontextmanager
async def listening(*hosts: str) -> AsyncIterator[int]:
    """A port where each of `hosts` greets with its own address."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(writer.get_extra_info("sockname")[0].encode())
        await reader.read()
        writer.close()

    first = await asyncio.start_server(greet, hosts[0], 0)
    port = first.sockets[0].getsockname()[1]
    others = [await asyncio.start_server(greet, host, port) for host in hosts[1:]]
    try:
        yield port
    finally:
        for server in (first, *others):
            server.close()


@contextmanager
def silent(host: str, port: int) -> Iterator[None]:
    """An address that does not even say no: a listener whose queue is full."""
    with socket.socket() as listener:
        listener.bind((host, port))
        listener.listen(0)
        callers = [socket.socket() for _ in range(4)]
        for caller in callers:
            caller.setblocking(False)
            caller.connect_ex((host, port))
        try:
            yield
        finally:
            for caller in callers:
                caller.close()


def resolves_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """From here on, upstream.test has these addresses, in this order."""

    async def found(host: str, port: int, **_: Any) -> list[tuple[int, int, int, str, tuple[Any, ...]]]:
        assert host == "upstream.test"
        return [entry for each in addresses for entry in socket.getaddrinfo(each, port, type=socket.SOCK_STREAM)]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", found)


async def reached(port: int) -> str:
    """Which address of upstream.test answered."""
    transport, protocol = await connect(Greeted, "upstream.test", port)
    said = await protocol.heard
    transport.abort()
    return said.decode()


@on_both_loops
async def test_an_address_that_says_no_costs_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "HEAD_START", 3600.0)
    async with listening("127.0.0.1") as port:
        resolves_to(monkeypatch, "127.0.0.3", "127.0.0.2", "127.0.0.1")
        assert await reached(port) == "127.0.0.1"


@on_both_loops
async def test_an_address_that_says_nothing_does_not_keep_the_next_from_being_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tcp, "HEAD_START", 0.01)
    async with listening("127.0.0.1") as port:
        with silent("127.0.0.2", port):
            resolves_to(monkeypatch, "127.0.0.2", "127.0.0.1")
            assert await reached(port) == "127.0.0.1"


@on_both_loops
async def test_the_address_that_the_system_prefers_is_the_only_one_where_it_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tcp, "HEAD_START", 3600.0)
    async with listening("127.0.0.1", "127.0.0.2") as port:
        resolves_to(monkeypatch, "127.0.0.2", "127.0.0.1")
        assert await reached(port) == "127.0.0.2"


@on_both_loops
async def test_no_address_that_answers_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening("127.0.0.1") as port:
        pass
    resolves_to(monkeypatch, "127.0.0.1", "127.0.0.2")
    with pytest.raises(ConnectionRefusedError):
        await reached(port)


@on_both_loops
async def test_who_gives_up_leaves_no_connection_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening("127.0.0.1") as port:
        with silent("127.0.0.2", port):
            resolves_to(monkeypatch, "127.0.0.2")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await reached(port)
        assert [task for task in asyncio.all_tasks() if task.get_coro().__name__ == "_open"] == []


def test_families_take_turns_and_the_preferred_one_begins() -> None:
    def entry(address: str, scope: int = 0) -> tuple[int, int, int, str, tuple[Any, ...]]:
        if ":" in address:
            return socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, 443, 0, scope)
        return socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)

    found = [entry("2001:db8::1"), entry("fe80::2", 7), entry("fe80::3%7", 7), entry("192.0.2.1"), entry("192.0.2.2")]
    assert tcp.by_turns(found) == ["2001:db8::1", "192.0.2.1", "fe80::2%7", "192.0.2.2", "fe80::3%7"]
