"""The bytes of an answer on their way to who takes them as they come: none is lost, whatever stops them."""

import asyncio

import pytest
from fuzz_world import Wire, quiet, timers

from faregate.gateway.http1 import HIGH_WATER, MAX_HEADER_BYTES, Connection, Cut, Flow

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
NOT_HTTP = b"?\r\n"
LONG = 60.0
"""Seconds of patience that no test uses up."""


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Upstream:
    """An upstream that has begun to answer, and who takes the answer."""

    def __init__(self) -> None:
        connection = Connection()
        self.wire = Wire(connection)
        self.exchange = connection.start(b"", b"")
        self.taken: list[bytes] = []
        self.wants_more = True
        self.say(HEAD)

    def say(self, data: bytes) -> None:
        for _ in self.wire.receive([data]):
            pass

    def take(self, data: bytes) -> bool:
        self.taken.append(data)
        return self.wants_more

    async def flowing(self, patience: float = LONG) -> asyncio.Task[Flow]:
        """The answer flows."""
        task = asyncio.create_task(self.exchange.flow(self.take, patience))
        await quiet()
        return task


@pytest.fixture
async def upstream() -> Upstream:
    return Upstream()


async def test_what_arrives_is_handed_on_in_the_same_turn_of_the_loop(upstream: Upstream) -> None:
    flowing = await upstream.flowing()
    upstream.say(chunk(b"a"))
    assert upstream.taken == [b"a"]
    upstream.say(chunk(b"b") + chunk(b"c"))
    assert upstream.taken == [b"a", b"bc"]
    upstream.say(chunk(b"d") + END)
    assert await flowing is Flow.ENDED
    assert upstream.taken == [b"a", b"bc", b"d"]
    assert not timers()


async def test_what_was_there_before_is_handed_on_first(upstream: Upstream) -> None:
    upstream.say(chunk(b"a"))
    upstream.say(chunk(b"b"))
    flowing = await upstream.flowing()
    assert upstream.taken == [b"ab"]
    upstream.say(END)
    assert await flowing is Flow.ENDED


async def test_nothing_is_handed_on_to_who_has_enough_and_nothing_is_lost(upstream: Upstream) -> None:
    flowing = await upstream.flowing()
    upstream.wants_more = False
    upstream.say(chunk(b"a"))
    # In the same turn: who waits has not run yet.
    upstream.say(chunk(b"b"))
    assert await flowing is Flow.STOPPED
    upstream.say(chunk(b"c"))
    assert upstream.taken == [b"a"]
    assert await upstream.exchange.flow(upstream.take, LONG) is Flow.STOPPED
    assert upstream.taken == [b"a", b"bc"]
    assert not timers()


async def test_who_stops_at_the_last_bytes_learns_of_the_end_next(upstream: Upstream) -> None:
    flowing = await upstream.flowing()
    upstream.wants_more = False
    upstream.say(chunk(b"a") + END)
    assert await flowing is Flow.STOPPED
    assert await upstream.exchange.flow(upstream.take, LONG) is Flow.ENDED
    assert upstream.taken == [b"a"]


@pytest.mark.parametrize("at_once", [True, False])
async def test_every_byte_before_a_failure_is_handed_on(upstream: Upstream, at_once: bool) -> None:
    flowing = await upstream.flowing()
    for piece in [chunk(b"a") + NOT_HTTP] if at_once else [chunk(b"a"), NOT_HTTP]:
        upstream.say(piece)
    with pytest.raises(Cut):
        await flowing
    assert upstream.taken == [b"a"]
    assert not timers()


async def test_who_stops_at_the_last_bytes_before_a_failure_learns_of_it_next(upstream: Upstream) -> None:
    flowing = await upstream.flowing()
    upstream.wants_more = False
    upstream.say(chunk(b"a") + NOT_HTTP)
    assert await flowing is Flow.STOPPED
    with pytest.raises(Cut):
        await upstream.exchange.flow(upstream.take, LONG)
    assert upstream.taken == [b"a"]


async def test_what_came_before_a_failure_while_nobody_took_it_is_handed_on_before_it_is_told(
    upstream: Upstream,
) -> None:
    upstream.say(chunk(b"a"))
    upstream.wire.lose()
    await quiet()
    with pytest.raises(Cut):
        await upstream.exchange.flow(upstream.take, LONG)
    assert upstream.taken == [b"a"]


async def test_who_leaves_in_the_middle_is_told_that_it_was_cut(upstream: Upstream) -> None:
    flowing = await upstream.flowing()
    upstream.exchange.abort()
    with pytest.raises(Cut):
        await flowing
    assert upstream.wire.over


async def test_silence_is_told_and_what_comes_after_it_is_not_lost(upstream: Upstream) -> None:
    assert await upstream.exchange.flow(upstream.take, 0.01) is Flow.SILENT
    upstream.say(chunk(b"a"))
    assert upstream.taken == []
    flowing = await upstream.flowing()
    assert upstream.taken == [b"a"]
    upstream.say(END)
    assert await flowing is Flow.ENDED
    assert not timers()


@pytest.mark.parametrize("waiting", [True, False], ids=["as it comes", "as it was there"])
async def test_an_error_of_who_takes_it_is_theirs_and_not_the_connections(upstream: Upstream, waiting: bool) -> None:
    def refuse(data: bytes) -> bool:
        raise LookupError(data)

    if not waiting:
        upstream.say(chunk(b"a"))
    flowing = asyncio.create_task(upstream.exchange.flow(refuse, LONG))
    if waiting:
        await quiet()
        upstream.say(chunk(b"a"))
        upstream.say(chunk(b"b"))
    with pytest.raises(LookupError):
        await flowing
    assert not upstream.wire.over
    assert not timers()


async def test_who_is_cancelled_takes_nothing_more_and_leaves_the_rest_where_it_is(upstream: Upstream) -> None:
    flowing = await upstream.flowing()
    upstream.say(chunk(b"a"))
    flowing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await flowing
    upstream.say(chunk(b"b"))
    assert upstream.taken == [b"a"]
    assert upstream.exchange.take() == b"b"
    assert not timers()


async def test_upstream_is_paused_while_who_takes_it_is_busy_elsewhere(upstream: Upstream) -> None:
    upstream.wants_more = False
    piece = b"x" * 65_536
    pieces = 0
    while not upstream.wire.paused:
        upstream.say(chunk(piece))
        pieces += 1
    assert pieces * len(piece) <= HIGH_WATER + len(piece)
    assert await upstream.exchange.flow(upstream.take, LONG) is Flow.STOPPED
    assert upstream.taken == [piece * pieces]
    assert not upstream.wire.paused


async def test_upstream_is_not_paused_for_a_piece_that_is_taken_whole(upstream: Upstream) -> None:
    flowing = await upstream.flowing()
    upstream.say(chunk(b"x" * 2 * HIGH_WATER))
    assert [len(data) for data in upstream.taken] == [2 * HIGH_WATER]
    assert not upstream.wire.paused
    upstream.say(END)
    assert await flowing is Flow.ENDED


@pytest.mark.parametrize("at_once", [True, False])
async def test_what_a_preface_says_is_nothing_of_the_answer(at_once: bool) -> None:
    connection = Connection()
    wire = Wire(connection)
    exchange = connection.start(b"", b"")
    preface, answer = b"HTTP/1.1 099 Odd\r\nContent-Length: 2\r\n\r\nno", HEAD + chunk(b"yes") + END
    for _ in wire.receive([preface + answer] if at_once else [preface, answer]):
        pass
    await exchange.answered(LONG)
    assert exchange.status == 200
    assert exchange.take() == b"yes"
    assert connection.reusable


async def test_a_second_answer_is_no_part_of_the_first_and_ends_the_connection(upstream: Upstream) -> None:
    flowing = await upstream.flowing()
    upstream.say(chunk(b"a") + END + HEAD + chunk(b"b"))
    assert await flowing is Flow.ENDED
    assert upstream.taken == [b"a"]
    assert not upstream.exchange.connection.reusable
    assert upstream.wire.over


@pytest.mark.parametrize("taken", [True, False])
async def test_what_follows_a_piece_and_is_none_has_an_end(upstream: Upstream, taken: bool) -> None:
    flowing = await upstream.flowing() if taken else None
    upstream.say(chunk(b"a") + b"0\r\n")
    said = 0
    while not upstream.wire.over:
        upstream.say(b"X: y\r\n")
        said += 6
    assert said <= MAX_HEADER_BYTES + 6
    with pytest.raises(Cut):
        await (flowing or upstream.exchange.flow(upstream.take, LONG))
    assert upstream.taken == [b"a"]
