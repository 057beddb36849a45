"""Many streams at once, from a process of its own, which checks every event of them.

`python streams.py REQUESTS URL EVENTS MILLISECONDS COUNT RAMP REST` starts COUNT streams within RAMP seconds. REQUESTS
is a file of `posts.write`; the result is JSON. REST is for how many seconds it does not look what has arrived, after it
has looked: so it leaves more of the machine to what is measured, and sees less exactly when a stream ended.
"""

import json
import select
import socket
import sys
from collections import Counter
from itertools import cycle, pairwise
from pathlib import Path
from time import perf_counter, sleep
from urllib.parse import urlsplit

import answers
import httptools
import machine
import posts

PATIENCE = 30.0
"""Seconds that the slowest stream may be behind its plan; then it is given up."""

OK = 200
MOST = 65_536
"""Bytes that are read at a time."""


def run(file: Path, url: str, events: int, milliseconds: int, count: int, ramp: float, rest: float) -> dict[str, float]:
    """Load `url`, from another process; what arrived."""
    said = machine.run(sys.executable, __file__, file, url, events, milliseconds, count, ramp, rest)
    result: dict[str, float] = json.loads(said)
    return result


class Stream:
    """One stream on a connection of its own."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.sock = socket.create_connection((parts.hostname or "", parts.port or 80))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.started = 0.0
        self.ended: float | None = None
        self.complete = False
        self.body: list[bytes] = []
        self.parser = httptools.HttpResponseParser(self)

    def start(self, request: bytes) -> None:
        """Ask for it."""
        self.started = perf_counter()
        self.sock.sendall(request)
        self.sock.setblocking(False)

    def read(self) -> bool:
        """Take what is there; whether that was the end of it."""
        try:
            data = self.sock.recv(MOST)
        except BlockingIOError:
            return False
        except ConnectionError:
            data = b""
        if data:
            self.parser.feed_data(data)
        if data and not self.complete:
            return False
        self.ended = perf_counter()
        return True

    @property
    def status(self) -> int:
        """The status that was answered; 0 if none was."""
        return int(self.parser.get_status_code())

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        self.complete = True

    def seconds(self) -> float:
        """How long it took, or takes by now."""
        return (self.ended or perf_counter()) - self.started


def stream(due: list[tuple[float, Stream, bytes]], rest: float, patience: float) -> None:
    """Start each stream when it is due, and read all of them until they have ended, or for `patience` seconds."""
    poll = select.epoll()
    running: dict[int, Stream] = {}
    deadline = perf_counter() + patience
    upcoming = iter(due)
    following = next(upcoming, None)
    while (running or following) and perf_counter() < deadline:
        while following is not None and following[0] <= perf_counter():
            _, of_one, request = following
            of_one.start(request)
            running[of_one.sock.fileno()] = of_one
            poll.register(of_one.sock, select.EPOLLIN)
            following = next(upcoming, None)
        for number, _ in poll.poll(0.001 if following else 0.1):
            if running[number].read():
                poll.unregister(number)
                del running[number]
        if rest and following is None:
            sleep(rest)
    poll.close()


def count(streams: list[Stream], events: int, planned: float) -> dict[str, float]:
    """Events that arrived; of streams that ended, those that did not, or in the wrong place; streams that went wrong,
    by what it was; how far the slowest was behind its plan, in seconds."""
    found: Counter[str] = Counter()
    for of_one in streams:
        whole = b"".join(of_one.body)
        numbers = answers.numbers_in(whole)
        arrived = len(numbers) + whole.count(b'"finish_reason":"stop"') + whole.count(b"data: [DONE]")
        found["arrived"] += arrived
        if of_one.ended is None:
            found["streams given up"] += 1
        elif of_one.status != OK:
            found[f"streams answered {of_one.status}"] += 1
        else:
            found["lost"] += events - arrived
            found["out of order"] += sum(after <= before for before, after in pairwise(numbers))
    behind = max(of_one.seconds() - planned for of_one in streams)
    return {"lost": 0, "out of order": 0, "behind their plan": behind, **found}


def main() -> None:
    """Load, and write what arrived."""
    file, url, *numbers = sys.argv[1:]
    events, milliseconds, number = map(int, numbers[:3])
    ramp, rest = map(float, numbers[3:])
    machine.raise_open_files()
    streams = [Stream(url) for _ in range(number)]
    begin = perf_counter()
    asked = cycle(posts.read(Path(file), url))
    due = [(begin + place * ramp / number, of_one, next(asked)) for place, of_one in enumerate(streams)]
    planned = (events - 1) * milliseconds / 1000
    stream(due, rest, ramp + planned + PATIENCE)
    print(json.dumps(count(streams, events, planned)))


if __name__ == "__main__":
    main()
