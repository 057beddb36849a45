"""An answer that nobody waits for any more: read on to its usage, left where that stops the bill, never for ever."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal

import pytest
from relay_world import STREAM, USAGE, Exchange, chunk
from relay_world import exchange as relayed

from faregate.gateway import attempts, relay
from faregate.gateway.relay import CLIENT_LEFT
from faregate.records import Status
from faregate.settings import OnClientLeft

JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Generation-Id: gen-1\r\nContent-Length: 9999999\r\n\r\n"
ERROR = JSON.replace(b"200 OK", b"500 Internal Server Error")
COMMENT = b": OPENROUTER PROCESSING\n\n"


class Trickling:
    """An OpenRouter that begins an answer, then sends the same few bytes again and again until it is told what else."""

    def __init__(self, begin: bytes, drop: bytes) -> None:
        self._begin = begin
        self._drop = drop
        self.rest = asyncio.get_running_loop().create_future()
        self.left = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(self._begin)
        gone = asyncio.create_task(reader.read())
        try:
            while not gone.done() and not self.rest.done():
                writer.write(self._drop)
                await asyncio.wait({gone, self.rest}, timeout=0.005, return_when=asyncio.FIRST_COMPLETED)
            if self.rest.done():
                writer.write(self.rest.result())
        finally:
            self.left.set()
            gone.cancel()
            writer.close()


@asynccontextmanager
async def exchange(
    begin: bytes, drop: bytes, *, stream: bool, client_left: OnClientLeft = OnClientLeft.AUTO
) -> AsyncIterator[Exchange]:
    async with relayed(Trickling(begin, drop), stream=stream, client_left=client_left) as one:
        yield one


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody waits for is given up soon."""
    monkeypatch.setattr(relay, "LONGEST_DRAIN", 0.05)
    monkeypatch.setattr(attempts, "ERROR_SECONDS", 0.05)


async def test_a_stream_that_trickles_without_an_end_is_given_up_when_nobody_waits_for_it(short: None) -> None:
    async with exchange(STREAM, chunk("Groq"), stream=True) as one:
        await one.begun.wait()
        one.client_leaves.set()
        record = await one.record()
    # What it cost is asked for later.
    assert (record.status, record.outcome, record.generation_id) == (Status.PENDING, Status.ABORTED, "gen-1")
    assert record.reason == CLIENT_LEFT


async def test_a_stream_that_has_told_its_usage_and_trickles_on_is_given_up_too(short: None) -> None:
    async with exchange(STREAM + chunk("Groq", USAGE), COMMENT, stream=True) as one:
        await one.begun.wait()
        one.client_leaves.set()
        record = await one.record()
    assert (record.status, record.cost) == (Status.ABORTED, Decimal("0.25"))


@pytest.mark.parametrize("begin", [JSON, ERROR], ids=["answer", "error"])
async def test_an_answer_in_one_piece_that_trickles_white_space_is_given_up_when_nobody_waits_for_it(
    begin: bytes, short: None
) -> None:
    async with exchange(begin, b" ", stream=False) as one:
        one.client_leaves.set()
        record = await one.record()
    assert record.status in (Status.PENDING, Status.FAILED)
    if begin is JSON:
        assert (record.outcome, record.reason, record.generation_id) == (Status.ABORTED, CLIENT_LEFT, "gen-1")


async def test_who_waits_may_wait_longer_than_an_answer_without_a_client_is_read(short: None) -> None:
    async with exchange(STREAM, chunk("Groq"), stream=True) as one:
        await one.begun.wait()
        # Several times as long as it would be read without a client.
        await asyncio.wait({one.task}, timeout=0.2)
        one.upstream.rest.set_result(chunk("Groq", USAGE) + b"data: [DONE]\n\n")
        record = await one.record()
    assert (record.status, record.cost) == (Status.COMPLETED, Decimal("0.25"))


async def test_a_provider_that_stops_the_bill_is_left_at_once() -> None:
    async with exchange(STREAM, chunk("OpenAI"), stream=True) as one:
        await one.begun.wait()
        one.client_leaves.set()
        record = await one.record()
    assert (record.status, record.outcome, record.generation_id) == (Status.PENDING, Status.ABORTED, "gen-1")


async def test_with_the_setting_drain_it_is_read_to_its_usage_all_the_same() -> None:
    async with exchange(STREAM, chunk("OpenAI"), stream=True, client_left=OnClientLeft.DRAIN) as one:
        await one.begun.wait()
        one.client_leaves.set()
        await asyncio.wait({one.task}, timeout=0.2)
        assert not one.task.done()
        one.upstream.rest.set_result(chunk("OpenAI", USAGE) + b"data: [DONE]\n\n")
        record = await one.record()
    assert (record.status, record.cost) == (Status.ABORTED, Decimal("0.25"))
