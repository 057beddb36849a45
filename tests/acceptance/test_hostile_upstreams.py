"""Odd and hostile answers of upstream: what each becomes for the client, for the record and for the hold."""

import asyncio
import gzip
import json
from collections.abc import Awaitable, Callable, Iterator
from decimal import Decimal
from typing import NamedTuple

import httpx
import pytest
from books import AT_ONCE, DAY, assert_nothing_is_held, settled
from commands import CONNECTION_KEY, DEADLINE, Gateway
from fleet import defaults
from open_webui import Person, plain_headers, somebody
from stand_in import StandIn, Writer, chunk, completion, head, usage, whole

KNOWN = {"total_cost": 0.5, "native_tokens_prompt": 3, "native_tokens_completion": 4}
DONE = b"data: [DONE]\n\n"
STREAM = head(X_Generation_Id="gen-1")
CHUNKED = head(X_Generation_Id="gen-1", Transfer_Encoding="chunked")
EVENTS = chunk("one") + chunk("two", usage=usage(0.25))
ANSWER = whole(completion(usage=usage(0.25)), X_Generation_Id="gen-1")
FINE = ("completed", "usage", Decimal("0.25"))
ASKED = ("failed", "generation", Decimal("0.5"))
GUESSED = ("failed", "estimate", None)


def in_chunks(data: bytes, size: int) -> bytes:
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


class Case(NamedTuple):
    """What upstream sends, piece by piece, and how it ends; what the record says: outcome, source, cost."""

    name: str
    pieces: list[bytes]
    record: tuple[str, str, Decimal | None]
    reset: bool = False
    stay: bool = False


def drip(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


STREAMS_THAT_ARRIVE = [
    Case("until-close", [STREAM + EVENTS + DONE], FINE),
    Case("event-by-event", drip(STREAM + EVENTS + DONE, 100), FINE),
    Case("slow-drip", drip(STREAM + EVENTS + DONE, 7), FINE),
    Case("chunks-of-a-byte", [CHUNKED + in_chunks(EVENTS + DONE, 1) + b"0\r\n\r\n"], FINE, stay=True),
    Case("trailers", [CHUNKED + in_chunks(EVENTS + DONE, 50) + b"0\r\nX-Usage: 9\r\n\r\n"], FINE, stay=True),
    Case("chunks-without-an-end", [CHUNKED + in_chunks(EVENTS + DONE, 50)], FINE),
    Case("reset-behind-done", [STREAM + EVENTS + DONE], FINE, reset=True),
    Case("reset-behind-usage", [STREAM + EVENTS], FINE, reset=True),
    Case(
        "garbage-behind-the-end", [CHUNKED + in_chunks(EVENTS + DONE, 50) + b"0\r\n\r\nHTTP/1.1 200 OK\r\n\r\nx"], FINE
    ),
    Case("hints-first", [b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", STREAM + EVENTS + DONE], FINE),
    Case("longer-than-it-says", [head(Content_Length=str(len(EVENTS + DONE))) + EVENTS + DONE + b"data: {}\n\n"], FINE),
]

STREAMS_THAT_BREAK = [
    Case("reset", [STREAM + chunk("one")], ASKED, reset=True),
    Case("closed", [STREAM + chunk("one")], ASKED),
    Case("reset-within-an-event", [STREAM + chunk("one") + chunk("two")[:50]], ASKED, reset=True),
    Case("closed-within-an-event", [STREAM + chunk("one") + chunk("two")[:50]], ASKED),
    Case("reset-at-once", [STREAM], ASKED, reset=True),
    Case("chunk-of-letters", [CHUNKED + in_chunks(chunk("one"), 50) + b"xyz\r\n"], ASKED, stay=True),
    Case(
        "trailer-without-end", [CHUNKED + in_chunks(chunk("one"), 50) + b"0\r\nX: ", b"y" * 500_000], ASKED, stay=True
    ),
    Case("extension-without-end", [CHUNKED + in_chunks(chunk("one"), 50) + b"5;", b"y" * 500_000], ASKED, stay=True),
    Case("shorter-than-it-says", [head(X_Generation_Id="gen-1", Content_Length="9999") + chunk("one")], ASKED),
]

WITHOUT_AN_ANSWER = [
    Case("nothing", [], GUESSED),
    Case("not-http", [b"SSH-2.0-OpenSSH_9.6\r\n"], GUESSED, stay=True),
    Case("head-cut", [b"HTTP/1.1 200 OK\r\nX-Generation-Id: gen-1\r\nContent-Ty"], ASKED, reset=True),
    Case("headers-without-end", [b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000], GUESSED, stay=True),
    Case("header-without-end", [b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000], GUESSED, stay=True),
    Case(
        "another-protocol",
        [b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nx"],
        GUESSED,
        stay=True,
    ),
    Case("two-lengths", [head("200 OK", Content_Length="5\r\nContent-Length: 6") + b"hello!"], GUESSED, stay=True),
    Case(
        "length-and-chunks", [head(Content_Length="5", Transfer_Encoding="chunked") + b"0\r\n\r\n"], GUESSED, stay=True
    ),
    Case(
        "gzip",
        [
            whole(
                gzip.compress(EVENTS + DONE), kind="text/event-stream", Content_Encoding="gzip", X_Generation_Id="gen-1"
            )
        ],
        ASKED,
        stay=True,
    ),
]

ANSWERS_THAT_ARRIVE = [
    Case("slow-drip", drip(ANSWER, 9), FINE, stay=True),
    Case("longer-than-it-says", [ANSWER + b"{}"], FINE, stay=True),
    Case("garbage-behind-it", [ANSWER + ANSWER], FINE, stay=True),
    Case("reset-behind-it", [ANSWER], FINE, reset=True),
]

ANSWERS_THAT_BREAK = [
    Case("truncated", [ANSWER[:-10]], ASKED),
    Case("reset", [ANSWER[:-10]], ASKED, reset=True),
    Case(
        "half-of-it-until-close",
        [head(kind="application/json", X_Generation_Id="gen-1") + b'{"id":"gen-1","cho'],
        ASKED,
    ),
    Case("empty", [whole(b"", X_Generation_Id="gen-1")], ASKED, stay=True),
    Case("a-page", [whole(b"<html>", kind="text/html", X_Generation_Id="gen-1")], ASKED, stay=True),
]


def plays(case: Case) -> Callable[[dict, Writer, StandIn], Awaitable[None]]:
    async def chat(body: dict, writer: Writer, upstream: StandIn) -> None:
        for piece in case.pieces:
            writer.write(piece)
            await writer.drain()
            # Lets each piece go by itself.
            await asyncio.sleep(0.001)
        if case.reset:
            # What was written should be read before.
            await asyncio.sleep(0.05)
            writer.transport.abort()
        elif not case.stay:
            writer.close()

    return chat


@pytest.fixture(scope="module")
def upstream() -> Iterator[StandIn]:
    running = StandIn(plays(Case("fine", [ANSWER], FINE, stay=True)))
    running.generations["gen-1"] = KNOWN
    yield running
    running.stop()


@pytest.fixture(scope="module")
def gateway(upstream: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway in front of it, in which everybody has room."""

    class There:
        url = upstream.url.removesuffix("/api/v1")

    running = Gateway.start(tmp_path_factory.mktemp("gateway"), defaults(There))
    running.set_policy(limits=[DAY, AT_ONCE])
    yield running
    assert "Traceback" not in running.process.output
    running.process.end()


def ask(gateway: Gateway, person: Person, *, stream: bool) -> httpx.Response:
    body = {"model": "acme/one", "stream": stream, "messages": [{"role": "user", "content": "Hello"}]}
    headers = plain_headers(person, CONNECTION_KEY)
    return httpx.post(f"{gateway.url}/v1/chat/completions", headers=headers, json=body, timeout=DEADLINE)


def check(gateway: Gateway, upstream: StandIn, case: Case, *, stream: bool) -> httpx.Response:
    """Ask; look at the record, at the hold, and whether the next one gets an answer of its own."""
    person, before = somebody(), len(upstream.chats)
    upstream.chat = plays(case)
    answer = ask(gateway, person, stream=stream)
    (record,) = settled(gateway, person)
    outcome, source, cost = case.record
    assert (record["status"], record["source"]) == (outcome, source), record
    if cost is not None:
        assert Decimal(str(record["cost"])) == cost
    assert_nothing_is_held(gateway, person, Decimal(str(record["cost"])))
    assert len(upstream.chats) == before + 1, "it was sent again"
    upstream.chat = plays(Case("fine", [ANSWER], FINE, stay=True))
    assert ask(gateway, somebody(), stream=False).json() == completion(usage=usage(0.25))
    return answer


def tabled(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


@tabled(STREAMS_THAT_ARRIVE)
def test_a_stream_that_is_whole_arrives_as_it_is_however_it_comes(gateway: Gateway, upstream: StandIn, case: Case):
    answer = check(gateway, upstream, case, stream=True)
    assert answer.status_code == 200
    assert answer.content.removesuffix(DONE) == EVENTS


@tabled(STREAMS_THAT_BREAK)
def test_a_stream_that_breaks_off_ends_with_an_error_that_can_be_read(gateway: Gateway, upstream: StandIn, case: Case):
    answer = check(gateway, upstream, case, stream=True)
    assert answer.status_code == 200
    *passed, last = answer.content.removesuffix(b"\n\n").split(b"\n\n")
    assert [event + b"\n\n" for event in passed] == ([] if case.name == "reset-at-once" else [chunk("one")])
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "upstream_cut"


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "json"])
@tabled(WITHOUT_AN_ANSWER)
def test_what_is_no_answer_is_answered_for(gateway: Gateway, upstream: StandIn, case: Case, stream: bool):
    answer = check(gateway, upstream, case, stream=stream)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_unavailable")


@tabled(ANSWERS_THAT_ARRIVE)
def test_an_answer_that_is_whole_arrives_as_it_is_however_it_comes(gateway: Gateway, upstream: StandIn, case: Case):
    answer = check(gateway, upstream, case, stream=False)
    assert (answer.status_code, answer.json()) == (200, completion(usage=usage(0.25)))


@tabled(ANSWERS_THAT_BREAK)
def test_an_answer_that_is_not_whole_is_no_answer(gateway: Gateway, upstream: StandIn, case: Case):
    answer = check(gateway, upstream, case, stream=False)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_unavailable")
