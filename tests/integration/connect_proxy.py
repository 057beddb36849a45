"""A small HTTP proxy that makes tunnels, to names that only it knows."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter


class ConnectProxy:
    """Counts what it was asked. `answer` is what it says instead of making a tunnel."""

    def __init__(self, ways: Mapping[str, int], answer: bytes | None) -> None:
        """`ways` are ports of this machine, by the host:port that clients ask for. Who asks for another is left."""
        self.heads: list[bytes] = []
        self.port = 0
        self.tunnels = 0
        self._ways = ways
        self._answer = answer

    @property
    def asked(self) -> list[bytes]:
        """The first lines of all requests."""
        return [head.partition(b"\r\n")[0] for head in self.heads]

    async def handle(self, reader: Reader, writer: Writer) -> None:
        """One client."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            if self._answer is not None:
                writer.write(self._answer)
                await reader.read()
                return
            port = self._ways.get(head.split(b" ")[1].decode())
            if port is None:
                return
            there, away = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n")
            self.tunnels += 1
            await asyncio.gather(_copy(reader, away), _copy(there, writer))
        except (ConnectionError, ssl.SSLError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def _copy(reader: Reader, writer: Writer) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


@asynccontextmanager
async def connect_proxy(
    ways: Mapping[str, int], *, answer: bytes | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[ConnectProxy]:
    """A proxy on a port of this machine; over TLS itself with a context."""
    proxy = ConnectProxy(ways, answer)
    server = await asyncio.start_server(proxy.handle, "127.0.0.1", 0, ssl=tls)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
