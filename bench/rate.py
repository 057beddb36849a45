"""Requests at a fixed rate, from a process of its own: they are sent when they are due, whatever became of others.

`python rate.py REQUESTS URL PER_SECOND SECONDS`. REQUESTS is a file of `posts.write`; the result is JSON.
"""

import asyncio
import json
import sys
from collections import deque
from itertools import cycle
from pathlib import Path
from time import perf_counter
from urllib.parse import urlsplit

import httptools
import machine
import posts
import uvloop

CONNECTIONS = 512
"""The most requests that are under way at once."""

WARM_UP = 0.5
"""Seconds at the beginning that are not counted."""

PATIENCE = 30.0
"""Seconds after which an answer that has not ended never will."""

Answer = asyncio.Future[tuple[float, int]]
"""The seconds since a request was due, and the status of its answer: 0 if the connection broke."""


def run(file: Path, url: str, per_second: float, seconds: float) -> dict[str, float]:
    """Load `url`, from another process; its latencies in milliseconds."""
    result: dict[str, float] = json.loads(machine.run(sys.executable, __file__, file, url, per_second, seconds))
    return result


class Client(asyncio.Protocol):
    """One connection with at most one request under way."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._parser = httptools.HttpResponseParser(self)
        self._due = 0.0
        self.answered: Answer = asyncio.get_running_loop().create_future()
        """The request that was sent last."""
        self.answered.set_result((0.0, 0))

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self._answer(0)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self._answer(self._parser.get_status_code())

    def ask(self, request: bytes, due: float) -> Answer:
        """Send `request`, which was due then."""
        self._due = due
        self.answered = asyncio.get_running_loop().create_future()
        if self._transport.is_closing():
            self._answer(0)
        else:
            self._transport.write(request)
        return self.answered

    def close(self) -> None:
        """End the connection."""
        self._transport.close()

    def _answer(self, status: int) -> None:
        if not self.answered.done():
            self.answered.set_result((perf_counter() - self._due, status))


async def load(asked: list[bytes], url: str, per_second: float, seconds: float) -> dict[str, float]:
    """Latencies in milliseconds from when a request was due: a wait for a free connection is in it."""
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    clients = [(await loop.create_connection(Client, parts.hostname, parts.port))[1] for _ in range(CONNECTIONS)]
    free, waiting, upcoming = deque(clients), deque[float](), cycle(asked)
    latencies: list[float] = []
    failed = 0

    def send(due: float) -> None:
        client = free.popleft()
        client.ask(next(upcoming), due).add_done_callback(lambda answer: ended(client, due, answer))

    def ended(client: Client, due: float, answer: Answer) -> None:
        nonlocal failed
        taken, status = answer.result()
        failed += status != 200
        if due >= start + WARM_UP:
            latencies.append(taken * 1000)
        free.append(client)
        if waiting:
            send(waiting.popleft())

    sent = 0
    start = perf_counter()
    while (now := perf_counter()) < start + WARM_UP + seconds:
        while sent < (now - start) * per_second:
            sent += 1
            if free:
                send(perf_counter())
            else:
                waiting.append(perf_counter())
        await asyncio.sleep(0.001)
    unsent = len(waiting)
    waiting.clear()
    _, silent = await asyncio.wait([client.answered for client in clients], timeout=PATIENCE)
    for client in clients:
        client.close()
    latencies.sort()
    p50, p99 = latencies[len(latencies) // 2], latencies[len(latencies) * 99 // 100]
    return {"sent": sent, "failed": failed + unsent + len(silent), "p50": p50, "p99": p99}


def main() -> None:
    """Load, and write what was found."""
    file, url, per_second, seconds = sys.argv[1:]
    machine.raise_open_files()
    asked = posts.read(Path(file), url)
    print(json.dumps(uvloop.run(load(asked, url, float(per_second), float(seconds)))))


if __name__ == "__main__":
    main()
