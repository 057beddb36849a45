"""A paced upstream, in a process of its own: every stream gets its next event when it is time, not before.

`python paced.py PORT EVENTS MILLISECONDS [CERTIFICATE KEY]`. All streams share one timer of a millisecond.
"""

import asyncio
import os
import socket
import ssl
import sys
from pathlib import Path

import answers
import machine
import uvloop

DEADLINE = 20.0
"""Seconds that a start may take."""

READY = "paced upstream serves"


class Pace:
    """Who is written to in which millisecond of the interval."""

    def __init__(self, interval: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._slots: list[set[Stream]] = [set() for _ in range(interval)]
        self._start = self._loop.time()
        self._ticks = 0
        self._tick()

    def join(self, stream: "Stream") -> set["Stream"]:
        """From now on `stream` is due once in each interval, until it leaves this set."""
        slot = self._slots[self._ticks % len(self._slots)]
        slot.add(stream)
        return slot

    def _tick(self) -> None:
        while self._start + self._ticks / 1000 <= self._loop.time():
            for stream in tuple(self._slots[self._ticks % len(self._slots)]):
                stream.next()
            self._ticks += 1
        self._loop.call_at(self._start + self._ticks / 1000, self._tick)


class Stream(asyncio.Protocol):
    """One connection, and the stream that it carries at the moment."""

    def __init__(self, pace: Pace, writes: list[bytes]) -> None:
        self._pace = pace
        self._writes = writes
        self._received = bytearray()
        self._sent = 0
        self._slot: set[Stream] = set()
        self._transport: asyncio.Transport
        self._socket: socket.socket | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        if transport.get_extra_info("sslcontext") is None:
            # Past the transport: that would cost half as much again, of a machine that has to serve others too.
            self._socket = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))

    def connection_lost(self, error: Exception | None) -> None:
        self._slot.discard(self)
        if self._socket is not None:
            self._socket.close()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end or len(body) < _length(head):
            return
        self._received.clear()
        if head.startswith(b"POST"):
            self._sent = 0
            self._transport.write(HEAD)
            self._slot = self._pace.join(self)
        else:
            catalogue = answers.models()
            self._transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                % (len(catalogue), catalogue)
            )

    def next(self) -> None:
        """Write the next event."""
        self._write(self._writes[self._sent])
        self._sent += 1
        if self._sent == len(self._writes):
            self._slot.discard(self)

    def _write(self, data: bytes) -> None:
        written = 0
        if self._socket is not None and not self._transport.get_write_buffer_size():
            try:
                written = self._socket.send(data)
            except BlockingIOError:
                written = 0
            except ConnectionError:
                return
        if written < len(data):
            self._transport.write(data[written:])


HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\nx-generation-id: %b\r\n\r\n"
    % answers.GENERATION.encode()
)


class Paced:
    """A running paced upstream."""

    def __init__(self, port: int, events: int, milliseconds: int, tls: tuple[Path, Path] | None) -> None:
        self.events = events
        self.milliseconds = milliseconds
        self._process = machine.start(sys.executable, __file__, port, events, milliseconds, *(tls or ()), piped=True)
        assert self._process.stdout is not None
        if READY not in self._process.stdout.readline():
            self.end()
            raise machine.CannotMeasure("The paced upstream does not start.")

    def end(self) -> None:
        """Stop it."""
        self._process.terminate()
        self._process.wait(DEADLINE)


async def serve(port: int, events: int, milliseconds: int, tls: list[str]) -> None:
    """Serve until the process ends."""
    context = None
    if tls:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(*tls)
    writes = [b"%x\r\n%b\r\n" % (len(event), event) for event in answers.paced_answer(events)]
    writes[-1] += b"0\r\n\r\n"
    pace = Pace(milliseconds)
    server = await asyncio.get_running_loop().create_server(
        lambda: Stream(pace, writes), "127.0.0.1", port, ssl=context, backlog=4096
    )
    print(READY, flush=True)
    await server.serve_forever()


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


if __name__ == "__main__":
    uvloop.run(serve(*map(int, sys.argv[1:4]), sys.argv[4:]))
