"""A client that leaves while upstream is silent: upstream is left at once, not when somebody speaks next.

What it took, from the client's leaving to the moment when upstream's socket tells, is printed (pytest -s).
"""

import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from statistics import median

import pytest
from books import AT_ONCE, DAY, until
from commands import CONNECTION_KEY, DEADLINE, Gateway, Launch
from open_webui import Person, plain_headers, somebody
from stand_in import StandIn, Writer, chunk, head

LEAVINGS = 50
COMMENT_SECONDS = 15.0
"""After so much silence the gateway speaks to its client itself, and would learn of its leaving that way."""


@pytest.fixture
def upstream() -> Iterator[StandIn]:
    """An upstream that says one thing and falls silent. It keeps when it was left."""

    async def fall_silent(_: dict, writer: Writer, upstream: StandIn) -> None:
        reader = upstream.reader
        writer.write(head(X_Generation_Id=f"gen-{len(upstream.chats)}") + chunk("Hello", provider="OpenAI"))
        await writer.drain()
        try:
            await reader.read()
        finally:
            upstream.gone.append(time.monotonic())

    running = StandIn(fall_silent)
    yield running
    running.stop()


@pytest.fixture
def gateway(launch: Launch, upstream: StandIn) -> Gateway:
    started = launch(OPENROUTER_BASE_URL=upstream.url)
    started.set_policy(limits=[DAY, AT_ONCE])
    return started


def listening(gateway: Gateway, person: Person) -> socket.socket:
    """A client that has read what upstream had to say."""
    body = {"model": "acme/one", "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
    data = json.dumps(body).encode()
    lines = [f"{name}: {value}" for name, value in plain_headers(person, CONNECTION_KEY).items()]
    first = "\r\n".join(["POST /v1/chat/completions HTTP/1.1", "Host: x", *lines, f"Content-Length: {len(data)}"])
    client = socket.create_connection(("127.0.0.1", gateway.process.port), timeout=DEADLINE)
    client.sendall(first.encode() + b"\r\n\r\n" + data)
    heard = b""
    while b"Hello" not in heard:
        heard += client.recv(65_536)
    return client


def close(client: socket.socket) -> None:
    client.close()


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@pytest.mark.parametrize("leave", [close, reset])
def test_who_leaves_while_upstream_is_silent_is_noticed_without_a_word(
    gateway: Gateway, upstream: StandIn, leave: Callable[[socket.socket], None]
):
    person = somebody()
    took = []
    for number in range(1, LEAVINGS + 1):
        client = listening(gateway, person)
        assert len(upstream.gone) == number - 1
        left_at = time.monotonic()
        leave(client)
        until(lambda number=number: len(upstream.gone) == number)
        took.append(upstream.gone[-1] - left_at)
    print(f"\nnoticed after {median(took) * 1000:.1f} ms (median), {max(took) * 1000:.1f} ms at worst, of {LEAVINGS}")
    assert max(took) < COMMENT_SECONDS / 3
    assert len(upstream.chats) == LEAVINGS
    until(lambda: next(quota["held"] for quota in gateway.quota(person.email) if quota["meter"] == "concurrent") == 0)
