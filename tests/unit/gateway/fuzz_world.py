"""What a fuzz is made of: the conversations of a corpus, what becomes of them on the way, and a wire to look at."""

import asyncio
from collections.abc import Collection, Iterator
from itertools import pairwise
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st

CORPUS = Path(__file__).parents[2] / "corpus"
TOKENS = (
    *(b"\r\n", b"\n", b"\r", b"\r\n\r\n", b" ", b"\t", b":", b",", b";", b"\x00", b"\xff", b"0", b"-1", b"ffffffff"),
    *(b"HTTP/1.1", b"HTTP/1.0", b"chunked", b"identity", b"close", b"upgrade", b"Upgrade: x\r\n", b"Connection: "),
    *(b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", b"HTTP/1.1 200 OK\r\n", b"x" * 300),
)
UNHURRIED = settings(deadline=None)
"""An example takes as long as a busy machine needs for it."""
CUTS = st.lists(st.integers(0, 4096), max_size=8)


def corpus(folder: str) -> dict[str, bytes]:
    """The conversations of a folder of the corpus, by name. One that ever broke a property belongs there."""
    return {path.stem: path.read_bytes() for path in sorted((CORPUS / folder).iterdir())}


def split(data: bytes, cuts: Collection[int]) -> list[bytes]:
    """The pieces in which it comes when it is cut there."""
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(edges)]


@st.composite
def mutated(draw: st.DrawFn, conversations: Collection[bytes]) -> bytes:
    """One of these, in which something was put, left out or changed, here and there."""
    data = draw(st.sampled_from(sorted(conversations)))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        data = data[:start] + draw(st.sampled_from(TOKENS) | st.binary(max_size=4)) + data[start + draw(_LEFT_OUT) :]
    return data


_LEFT_OUT = st.sampled_from([0, 0, 1, 2, 10, 100])


class Wire(asyncio.Transport):
    """A connection without another end. Like a real one, it tells its protocol of its end once, and a little later."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__({"peername": ("127.0.0.1", 50_000), "sockname": ("127.0.0.1", 8080)})
        self.written = b""
        self.paused = False
        self.over = False
        self._protocol = protocol
        protocol.connection_made(self)

    def receive(self, pieces: list[bytes]) -> Iterator[None]:
        """What comes, a piece at a step; nothing more comes when the protocol has paused or closed it."""
        for piece in pieces:
            if self.paused or self.over:
                return
            self._protocol.data_received(piece)
            yield

    def lose(self) -> None:
        """The other end has gone."""
        self.close()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def write_eof(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self.over

    def close(self) -> None:
        if not self.over:
            self.over = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    def abort(self) -> None:
        self.close()

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


async def quiet() -> None:
    """Let everything run that can: it waits for the wire then, or has ended."""
    for _ in range(8):
        await asyncio.sleep(0)


def timers() -> list[asyncio.TimerHandle]:
    """What is still to happen on the running loop."""
    scheduled: list[asyncio.TimerHandle] = asyncio.get_running_loop()._scheduled
    return [timer for timer in scheduled if not timer.cancelled()]
