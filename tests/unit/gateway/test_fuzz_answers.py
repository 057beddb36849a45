"""Bytes of any kind from upstream: the exchange always ends, the same way in whatever pieces they come.

The corpus goes first, cut everywhere; then what becomes of it by chance.
"""

import asyncio
from typing import NamedTuple

import pytest
from fuzz_world import CUTS, TOKENS, UNHURRIED, Wire, corpus, mutated, quiet, split, timers
from hypothesis import given
from hypothesis import strategies as st

from faregate.gateway import http1
from faregate.gateway.http1 import Connection, Cut, UpstreamFailure

ANSWERS = corpus("answers")
MEANING = {
    # Status, body, and whether the connection may be used again.
    "chunked": (200, b"data: {}\n\n", True),
    "continue": (200, b"{}", True),
    "error": (429, b'{"error":{}}', True),
    "length": (200, b"{}", True),
    "no-content": (204, b"", True),
    "not-modified": (304, b"", True),
    "trailers": (200, b"{}", True),
    "chunked-not-last": (200, b"2\r\n{}\r\n0\r\n\r\n", False),
    "close": (200, b"{}", False),
    "garbage-behind": (200, b"{}", False),
    "two-answers": (200, b"{}", False),
    "until-close": (200, b"{}", False),
}
"""What the corpus is, as far as it is whole; the others are no answers, or break off."""
REQUEST, BODY = b"POST /api/v1/chat/completions HTTP/1.1\r\nContent-Length: 2\r\n\r\n", b"{}"


class Told(NamedTuple):
    """What the reader of an answer learns, and whether its connection may carry another one."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    failure: type[UpstreamFailure] | None
    reusable: bool


async def told(pieces: list[bytes]) -> Told:
    """What is told of an answer in these pieces, after which upstream closes the connection."""
    connection = Connection()
    wire = Wire(connection)
    exchange = connection.start(REQUEST, BODY)
    body, failure = b"", None
    for _ in wire.receive(pieces):
        if exchange.status and await exchange.ready(0):
            try:
                body += exchange.take()
            except UpstreamFailure:
                break
    reusable = connection.reusable
    wire.lose()
    await quiet()
    try:
        while data := await exchange.read(0):
            body += data
    except UpstreamFailure as ended:
        failure = type(ended)
    assert wire.written == REQUEST + BODY
    assert exchange.complete is (failure is None)
    assert not connection.reusable
    assert not timers()
    return Told(exchange.status, list(exchange.headers.items()) if exchange.status else [], body, failure, reusable)


def run(pieces: list[bytes]) -> Told:
    return asyncio.run(told(pieces))


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_of_the_corpus_is_read_as_what_it_is(name: str):
    told = run([ANSWERS[name]])
    if name in MEANING:
        assert (told.status, told.body, told.reusable) == MEANING[name]
        assert told.failure is None
    else:
        assert told.failure is Cut
        assert not told.reusable
    # What is said before an answer, or behind it, is no part of it.
    assert not {b"link", b"x-generation-id"} & {header for header, _ in told.headers}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_of_the_corpus_is_the_same_byte_by_byte_and_cut_anywhere_in_two(name: str):
    answer = ANSWERS[name]
    whole = run([answer])
    assert run(split(answer, range(len(answer)))) == whole
    for cut in range(len(answer)):
        assert run(split(answer, [cut])) == whole, cut


@UNHURRIED
@given(answer=mutated(ANSWERS.values()), cuts=CUTS)
def test_no_split_of_any_answer_changes_what_is_told_of_it(answer: bytes, cuts: list[int]):
    assert run(split(answer, cuts)) == run(split(answer, []))


@UNHURRIED
@given(answer=st.lists(st.sampled_from(TOKENS) | st.binary(max_size=30), max_size=12).map(b"".join), cuts=CUTS)
def test_no_bytes_at_all_keep_an_exchange_from_its_end(answer: bytes, cuts: list[int]):
    assert run(split(answer, cuts)) == run(split(answer, []))


ENDLESS = (
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"",
)


@UNHURRIED
@given(
    beginning=st.sampled_from(ENDLESS),
    fill=st.sampled_from([b"X: y\r\n", b"x", b"1;x", b"1\r\na\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"\r\n", b": "]),
    size=st.integers(1, 64),
)
def test_an_answer_without_end_is_not_kept_in_memory(beginning: bytes, fill: bytes, size: int):
    high_water, most_header_bytes = 512, 1024

    async def keep() -> None:
        connection = Connection()
        wire = Wire(connection)
        exchange = connection.start(REQUEST, BODY)
        endless = beginning + fill * 4000
        for _ in wire.receive([endless[at : at + size] for at in range(0, len(endless), size)]):
            pass
        assert wire.paused or wire.over
        assert sum(len(name) + len(value) for name, value in exchange.headers.items()) <= most_header_bytes + size
        if wire.paused:
            assert len(exchange.take()) <= high_water + size
            assert not wire.paused
        wire.lose()
        await quiet()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http1, "HIGH_WATER", high_water)
        patch.setattr(http1, "MAX_HEADER_BYTES", most_header_bytes)
        asyncio.run(keep())
