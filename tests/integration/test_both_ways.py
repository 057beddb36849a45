"""Every answer twice: on the wire that our server lends, and by the messages of ASGI. Nobody can tell them apart."""

import asyncio
import gc
import json
from decimal import Decimal

import pytest
from both_loops import on_both_loops
from both_ways import STREAM, Answer, Headers, Node, Way, answering, chat, chunked, request

from faregate.gateway import relay
from faregate.gateway.relay import CLIENT_LEFT, KEEP_ALIVE
from faregate.http_protocol import HttpProtocol
from faregate.policy.model import Limit, Meter, Window
from faregate.records import Source, Status

BOTH_WAYS = pytest.mark.parametrize("way", ["wire", "asgi"])
SMALL = 4096
"""Bytes of a receive buffer."""

JSON = (
    b'{"id":"gen-1","provider":"Groq","model":"acme/cheap","choices":[{"index":0,"message":{"content":"Hi"}}],'
    b'"usage":{"prompt_tokens":5,"completion_tokens":5,"total_tokens":10,"cost":0.25}}'
)
EVENT = b'data: {"id":"gen-1","provider":"Groq","choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n'
OPENAI = EVENT.replace(b"Groq", b"OpenAI")
USAGE = (
    b'data: {"id":"gen-1","provider":"Groq","choices":[],'
    b'"usage":{"prompt_tokens":5,"completion_tokens":5,"total_tokens":10,"cost":0.25}}\n\n'
)
DONE = b"data: [DONE]\n\n"
WHOLE = EVENT * 3 + USAGE + DONE
CODE = (
    b'data: {"id":"gen-1","provider":"Groq","choices":[],"event":{"type":"execute"}}\n\n',
    b'data: {"id":"gen-1","provider":"Groq","choices":[]}\n\n',
)
"""An event that would run code in a browser, and what is left of it."""
ERROR = (
    b'data: {"id":"gen-1","choices":[{"index":0,"delta":{},"finish_reason":"error"}],'
    b'"error":{"code":502,"message":"Out of steam"}}\n\n',
    b'data: {"error":{"message":"Out of steam","type":"upstream_error","code":"upstream_502","param":null}}\n\n',
)
"""An error of OpenRouter in mid-stream, and what its reader is told."""
CUT = (
    b'data: {"error":{"message":"The AI service broke off in the middle of this answer; what you see is all that '
    b'arrived. Please try again.","type":"upstream_error","code":"upstream_cut","param":null}}\n\n'
)
STOPPED = (
    b'data: {"error":{"message":"The gateway is being restarted, and could not wait for the end of this answer. '
    b'Please try again.","type":"server_error","code":"shutting_down","param":null}}\n\n'
)
STEAM_GONE = (
    b'{"error":{"message":"Out of steam","type":"upstream_error","code":"upstream_502","param":null}}',
    b'{"error":{"code":502,"message":"Out of steam"}}',
)
"""What is told of an error, and the error."""


def json_headers(body: bytes, request_id: str = "req-1", *more: tuple[str, str]) -> Headers:
    first = [("content-type", "application/json"), ("x-request-id", request_id), ("content-length", str(len(body)))]
    return [*first, *more]


def stream_headers(request_id: str = "req-1", *more: tuple[str, str]) -> Headers:
    return [
        ("content-type", "text/event-stream"),
        ("x-request-id", request_id),
        ("cache-control", "no-cache"),
        ("x-accel-buffering", "no"),
        *more,
        ("transfer-encoding", "chunked"),
    ]


async def streamed(node: Node, body: bytes, size: int = 2**30) -> Answer:
    """What a client gets of this stream of upstream."""
    client = await node.client()
    await client.send(chat())
    await (await node.next()).stream(body, size)
    return await client.answer()


# --- whole answers ---


@on_both_loops
@BOTH_WAYS
async def test_an_answer_in_one_piece_passes_as_it_is(way: Way) -> None:
    async with answering(way) as node:
        client = await node.client()
        await client.send(chat(stream=False))
        await (await node.next()).answer("200 OK", JSON)
        assert await client.answer() == Answer(200, json_headers(JSON), JSON)
        record = await node.record()
    assert (record.status, record.source, record.cost) == (Status.COMPLETED, Source.USAGE, Decimal("0.25"))
    assert (record.total_tokens, record.provider, record.generation_id) == (10, "Groq", "gen-1")


@on_both_loops
@BOTH_WAYS
async def test_an_error_within_a_success_is_told_as_an_error(way: Way) -> None:
    told, error = STEAM_GONE
    async with answering(way) as node:
        client = await node.client()
        await client.send(chat(stream=False))
        await (await node.next()).answer("200 OK", error)
        assert await client.answer() == Answer(502, json_headers(told), told)
        record = await node.record()
    assert (record.status, record.cost, record.reason) == (Status.FAILED, Decimal(0), "upstream 502")


@on_both_loops
@BOTH_WAYS
@pytest.mark.parametrize("stream", [True, False])
async def test_what_upstream_refuses_is_refused_with_its_time_to_wait(way: Way, stream: bool) -> None:
    told = b'{"error":{"message":"Slow down","type":"upstream_error","code":"upstream_429","param":null}}'
    async with answering(way) as node:
        client = await node.client()
        await client.send(chat(stream=stream))
        error = b'{"error":{"code":429,"message":"Slow down"}}'
        await (await node.next()).answer("429 Too Many Requests", error, b"Retry-After: 7\r\n")
        headers = json_headers(told, "req-1", ("retry-after", "7"))
        assert await client.answer() == Answer(429, headers, told)
        record = await node.record()
    assert (record.status, record.cost, record.reason) == (Status.FAILED, Decimal(0), "upstream 429")


@on_both_loops
@BOTH_WAYS
async def test_what_a_quota_refuses_never_comes_to_upstream(way: Way) -> None:
    async with answering(way, Limit(Meter.REQUESTS, Window.DAY, 0)) as node:
        answer = await (await node.client()).ask(chat())
        record = await node.record()
        assert node.asked == 0
    error = json.loads(answer.body)["error"]
    assert (answer.status, error["type"]) == (429, "quota_exceeded")
    names = ["content-type", "x-request-id", "content-length", "retry-after", "ratelimit-policy", "ratelimit"]
    assert [name for name, _ in answer.headers] == names
    assert (record.status, record.requests) == (Status.REFUSED, 0)


@on_both_loops
@BOTH_WAYS
async def test_what_is_not_in_the_table_is_not_there(way: Way) -> None:
    told = (
        b'{"error":{"message":"There is no GET /v1/nowhere here. Faregate serves POST /v1/chat/completions and '
        b'GET /v1/models.","type":"invalid_request_error","code":"not_found","param":null}}'
    )
    async with answering(way) as node:
        answer = await (await node.client()).ask(request("GET", "/v1/nowhere"))
        assert answer == Answer(404, json_headers(told), told)
        assert await node.records() == []


# --- streams ---


@on_both_loops
@BOTH_WAYS
@pytest.mark.parametrize("size", [1, 7, 2**30])
async def test_a_stream_is_the_same_in_whatever_pieces_it_comes(way: Way, size: int) -> None:
    async with answering(way) as node:
        assert await streamed(node, WHOLE, size) == Answer(200, stream_headers(), WHOLE)
        record = await node.record()
    assert (record.status, record.source, record.cost) == (Status.COMPLETED, Source.USAGE, Decimal("0.25"))
    assert (record.total_tokens, record.provider, record.generation_id) == (10, "Groq", "gen-1")


@on_both_loops
@BOTH_WAYS
@pytest.mark.parametrize("size", [1, 2**30])
async def test_an_event_that_would_run_in_a_browser_is_disarmed(way: Way, size: int) -> None:
    armed, harmless = CODE
    async with answering(way) as node:
        answer = await streamed(node, EVENT + armed + WHOLE, size)
        assert answer == Answer(200, stream_headers(), EVENT + harmless + WHOLE)
        assert (await node.record()).status is Status.COMPLETED


@on_both_loops
@BOTH_WAYS
@pytest.mark.parametrize("size", [1, 2**30])
async def test_an_error_in_mid_stream_is_the_last_event(way: Way, size: int) -> None:
    error, told = ERROR
    async with answering(way) as node:
        answer = await streamed(node, EVENT + error + EVENT + DONE, size)
        assert answer == Answer(200, stream_headers(), EVENT + told)
        record = await node.record()
    assert (record.status, record.cost, record.reason) == (Status.FAILED, Decimal(0), "upstream 502")


@on_both_loops
@BOTH_WAYS
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
async def test_a_stream_that_breaks_off_within_an_event_says_so(way: Way, reset: bool) -> None:
    async with answering(way) as node:
        client = await node.client()
        await client.send(chat())
        asked = await node.next()
        await asked.say(STREAM, *chunked(EVENT + EVENT[:40]))
        head = await client.head()
        await client.until(EVENT)
        (asked.reset if reset else asked.end)()
        assert (*head, await client.rest()) == (200, stream_headers(), EVENT + CUT)
        record = await node.record()
    assert (record.status, record.outcome, record.generation_id) == (Status.PENDING, Status.FAILED, "gen-1")
    assert record.reason == "upstream closed the connection in the middle of its answer"


@on_both_loops
@BOTH_WAYS
async def test_a_stream_that_ends_without_saying_so_says_so(way: Way) -> None:
    async with answering(way) as node:
        assert await streamed(node, EVENT) == Answer(200, stream_headers(), EVENT + CUT)
        record = await node.record()
    assert (record.status, record.outcome) == (Status.PENDING, Status.FAILED)
    assert record.reason == "upstream ended the stream without [DONE] and without usage"


@on_both_loops
@BOTH_WAYS
async def test_a_stream_that_ends_on_its_usage_is_complete(way: Way) -> None:
    async with answering(way) as node:
        assert await streamed(node, EVENT + USAGE[:-1]) == Answer(200, stream_headers(), EVENT + USAGE)
        record = await node.record()
    assert (record.status, record.cost) == (Status.COMPLETED, Decimal("0.25"))


@on_both_loops
@BOTH_WAYS
async def test_an_event_of_megabytes_passes_whole(way: Way) -> None:
    large = EVENT.replace(b"Hi", b"a" * 5_000_000)
    async with answering(way) as node:
        client = await node.client()
        await client.send(chat())
        saying = asyncio.create_task((await node.next()).stream(large + EVENT + large + USAGE + DONE, 100_000))
        answer = await client.answer()
        await saying
        assert answer.body == large + EVENT + large + USAGE + DONE
        assert answer[:2] == (200, stream_headers())
        assert (await node.record()).status is Status.COMPLETED


@on_both_loops
@BOTH_WAYS
async def test_who_waits_for_a_silent_upstream_is_told_that_somebody_is_there(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "SILENCE_SECONDS", 0.02)
    async with answering(way) as node:
        client = await node.client()
        await client.send(chat())
        asked = await node.next()
        await asked.say(STREAM)
        assert await client.head() == (200, stream_headers())
        await client.until(KEEP_ALIVE * 2)
        await asked.say(*chunked(EVENT + EVENT[:10]))
        await client.until(EVENT + KEEP_ALIVE)
        await asked.say(*chunked(EVENT[10:] + USAGE + DONE), b"0\r\n\r\n")
        assert (await client.rest()).replace(KEEP_ALIVE, b"") == EVENT * 2 + USAGE + DONE
        assert (await node.record()).status is Status.COMPLETED


@on_both_loops
@BOTH_WAYS
@pytest.mark.parametrize("begun", [b"", EVENT[:30]], ids=["nothing", "half an event"])
async def test_a_stream_is_known_to_have_begun_before_its_first_event(way: Way, begun: bytes) -> None:
    async with answering(way) as node:
        client = await node.client()
        await client.send(chat())
        asked = await node.next()
        await asked.say(b"".join([STREAM, *chunked(begun)]))
        assert await client.head() == (200, stream_headers())
        await asked.say(*chunked(WHOLE[len(begun) :]), b"0\r\n\r\n")
        assert await client.rest() == WHOLE


# --- who does not read, and who leaves ---


def events(number: int) -> bytes:
    """So many events, of 1000 bytes each, no two the same."""
    lines = (EVENT[:-2] + b": %d" % one for one in range(number))
    return b"".join(line.ljust(998, b" ") + b"\n\n" for line in lines)


@on_both_loops
@BOTH_WAYS
async def test_upstream_waits_for_a_client_that_does_not_read_and_it_misses_nothing(way: Way) -> None:
    body = events(20_000) + USAGE + DONE
    async with answering(way) as node:
        client = await node.client(SMALL)
        await client.send(chat())
        asked = await node.next()
        saying = asyncio.create_task(asked.stream(body, 50_000))
        taken = await node.at_rest(lambda: asked.accepted)
        assert 0 < taken < 8_000_000
        assert await client.head() == (200, stream_headers())
        assert await client.rest() == body
        await saying
        record = await node.record()
    assert (record.status, record.cost) == (Status.COMPLETED, Decimal("0.25"))


@on_both_loops
@BOTH_WAYS
async def test_a_client_that_never_reads_counts_as_gone_and_its_answer_is_read_to_the_usage(way: Way) -> None:
    async with answering(way, patience=0.5) as node:
        client = await node.client(SMALL)
        await client.send(chat())
        asked = await node.next()
        await asked.stream(events(20_000) + USAGE + DONE, 50_000)
        record = await node.record()
        await client.cut()
    assert (record.status, record.reason, record.cost) == (Status.ABORTED, CLIENT_LEFT, Decimal("0.25"))


@on_both_loops
@BOTH_WAYS
async def test_who_asks_on_and_reads_nothing_is_not_answered_without_end(way: Way) -> None:
    large = JSON.replace(b"Hi", b"a" * 3_000_000)
    async with answering(way) as node:
        client = await node.client(SMALL)
        await client.send(chat(stream=False) * 8)

        async def answer_all() -> None:
            for _ in range(8):
                await (await node.next()).answer("200 OK", large)

        saying = asyncio.create_task(answer_all())
        assert await node.at_rest(lambda: node.asked) < 5
        for _ in range(8):
            assert (await client.answer()).body == large
        await saying
        assert [record.status for record in await node.records()] == [Status.COMPLETED] * 8


@on_both_loops
@BOTH_WAYS
@pytest.mark.parametrize("text", ["Hello", "Hello" * 200_000], ids=["little", "much"])
async def test_who_leaves_while_upstream_is_silent_ends_the_bill_where_that_is_possible(way: Way, text: str) -> None:
    async with answering(way) as node:
        client = await node.client()
        await client.send(chat(text=text))
        asked = await node.next()
        await asked.say(STREAM, *chunked(OPENAI))
        await client.head()
        await client.until(OPENAI)
        client.leave()
        await asked.left.wait()
        record = await node.record()
    assert (record.status, record.outcome, record.reason) == (Status.PENDING, Status.ABORTED, CLIENT_LEFT)
    assert (record.provider, record.generation_id) == ("OpenAI", "gen-1")


@on_both_loops
@BOTH_WAYS
@pytest.mark.parametrize("provider", ["OpenAI", "Groq"])
async def test_who_leaves_before_the_first_byte_is_not_forgotten(way: Way, provider: str) -> None:
    async with answering(way) as node:
        client = await node.client()
        await client.send(chat())
        asked = await node.next()
        client.leave()
        event = EVENT.replace(b"Groq", provider.encode())
        await node.at_rest(lambda: node.asked)
        await asked.say(STREAM, *chunked(event))
        if provider == "OpenAI":
            await asked.left.wait()
        else:
            await asked.say(*chunked(USAGE + DONE), b"0\r\n\r\n")
        record = await node.record()
    ends = {"OpenAI": (Status.PENDING, Status.ABORTED, None), "Groq": (Status.ABORTED, None, Decimal("0.25"))}
    assert (record.status, record.outcome, record.cost) == ends[provider]
    assert record.reason == CLIENT_LEFT


@on_both_loops
@BOTH_WAYS
async def test_who_leaves_an_answer_in_one_piece_pays_for_it(way: Way) -> None:
    async with answering(way) as node:
        client = await node.client()
        await client.send(chat(stream=False))
        asked = await node.next()
        client.leave()
        await node.at_rest(lambda: node.asked)
        await asked.answer("200 OK", JSON)
        record = await node.record()
    assert (record.status, record.reason, record.cost) == (Status.ABORTED, CLIENT_LEFT, Decimal("0.25"))


# --- connections ---


@on_both_loops
@BOTH_WAYS
async def test_a_connection_carries_one_answer_after_the_other(way: Way) -> None:
    async with answering(way) as node:
        client = await node.client()
        await client.send(chat())
        await (await node.next()).stream(WHOLE)
        assert await client.answer() == Answer(200, stream_headers("req-1"), WHOLE)
        await client.send(chat(stream=False))
        await (await node.next()).answer("200 OK", JSON)
        assert await client.answer() == Answer(200, json_headers(JSON, "req-2"), JSON)
        assert (await client.ask(request("GET", "/v1/nowhere"))).status == 404
        assert [record.status for record in await node.records()] == [Status.COMPLETED] * 2


@on_both_loops
@BOTH_WAYS
async def test_requests_that_do_not_wait_for_each_other_are_answered_in_turn(way: Way) -> None:
    async with answering(way) as node:
        client = await node.client()
        await client.send(chat() + chat(stream=False) + request("GET", "/v1/nowhere") + chat())
        first = await node.next()
        await first.say(STREAM, *chunked(EVENT))
        assert await client.head() == (200, stream_headers("req-1"))
        await client.until(EVENT)
        assert await node.at_rest(lambda: node.asked) == 1
        await first.say(*chunked(WHOLE[len(EVENT) :]), b"0\r\n\r\n")
        assert await client.rest() == WHOLE
        await (await node.next()).answer("200 OK", JSON)
        answer = await client.answer()
        assert (answer.status, answer.body) == (200, JSON)
        assert (await client.answer()).status == 404
        await (await node.next()).stream(WHOLE, 10)
        assert (await client.answer()).body == WHOLE
        assert [record.status for record in await node.records()] == [Status.COMPLETED] * 3


@on_both_loops
@BOTH_WAYS
async def test_who_wants_no_further_answer_is_told_so_and_closed(way: Way) -> None:
    close = ("connection", "close")
    async with answering(way) as node:
        client = await node.client()
        await client.send(chat(headers="Connection: close\r\n"))
        await (await node.next()).stream(WHOLE)
        assert await client.answer() == Answer(200, stream_headers("req-1", close), WHOLE)
        assert await client.closed()
        client = await node.client()
        await client.send(chat(stream=False, headers="Connection: close\r\n"))
        await (await node.next()).answer("200 OK", JSON)
        assert await client.answer() == Answer(200, json_headers(JSON, "req-2", close), JSON)
        assert await client.closed()
        assert [record.status for record in await node.records()] == [Status.COMPLETED] * 2


@on_both_loops
@BOTH_WAYS
async def test_http_1_0_is_answered_and_closed(way: Way) -> None:
    close = ("connection", "close")
    async with answering(way) as node:
        client = await node.client()
        await client.send(chat(stream=False, version="1.0"))
        await (await node.next()).answer("200 OK", JSON)
        assert await client.answer() == Answer(200, json_headers(JSON, "req-1", close), JSON)
        assert await client.closed()
        client = await node.client()
        await client.send(chat(version="1.0"))
        await (await node.next()).stream(WHOLE)
        status, headers, body = await client.answer()
        assert (status, body) == (200, WHOLE)
        assert close in headers
        # By ASGI it is the server that chooses the form.
        assert way == "asgi" or headers == stream_headers("req-2", close)[:-1]
        assert await client.closed()
        assert [record.status for record in await node.records()] == [Status.COMPLETED] * 2


@on_both_loops
@BOTH_WAYS
async def test_who_expects_to_be_told_to_continue_is_told(way: Way) -> None:
    head, _, body = chat(headers="Expect: 100-continue\r\n").partition(b"\r\n\r\n")
    async with answering(way) as node:
        client = await node.client()
        assert await client.ask(head + b"\r\n\r\n") == Answer(100, [], b"")
        await client.send(body)
        await (await node.next()).stream(WHOLE)
        assert await client.answer() == Answer(200, stream_headers(), WHOLE)
        assert (await node.record()).status is Status.COMPLETED


@on_both_loops
@BOTH_WAYS
async def test_who_expects_it_and_is_refused_is_not_told_to_continue(way: Way) -> None:
    async with answering(way) as node:
        client = await node.client()
        refused = request("POST", "/v1/nowhere", headers="Expect: 100-continue\r\nContent-Length: 5\r\n")
        assert (await client.ask(refused)).status == 404


@on_both_loops
@BOTH_WAYS
async def test_what_is_no_request_has_one_answer_also_where_its_head_had_one_coming(
    way: Way, caplog: pytest.LogCaptureFixture
) -> None:
    async with answering(way) as node:
        client = await node.client()
        answer = await client.ask(request("POST", "/v1/nowhere", headers="Transfer-Encoding: chunked\r\n") + b"?")
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (400, "invalid_request")
        assert await client.closed()
        assert await node.records() == []
    assert [record for record in caplog.records if record.exc_info] == []


@on_both_loops
@BOTH_WAYS
async def test_a_stream_that_a_stop_cuts_says_so_as_its_last_event(way: Way) -> None:
    async with answering(way, grace=0.1) as node:
        client = await node.client()
        await client.send(chat())
        asked = await node.next()
        await asked.say(STREAM, *chunked(EVENT + EVENT[:10]))
        await client.head()
        await client.until(EVENT)
        await node.server.stop()
        assert await client.rest() == EVENT + STOPPED
        assert await client.closed()
        await asked.left.wait()
        record = await node.record()
    assert (record.status, record.outcome) == (Status.PENDING, Status.ABORTED)
    assert record.reason == "cut short by the gateway itself"


@on_both_loops
@BOTH_WAYS
async def test_a_stream_that_ends_while_the_gateway_stops_is_whole_and_the_last(way: Way) -> None:
    async with answering(way) as node:
        client = await node.client()
        await client.send(chat())
        asked = await node.next()
        await asked.say(STREAM, *chunked(EVENT))
        await client.head()
        await client.until(EVENT)
        stopping = asyncio.create_task(node.server.stop())
        await asked.say(*chunked(WHOLE[len(EVENT) :]), b"0\r\n\r\n")
        assert await client.rest() == WHOLE
        assert await client.closed()
        await stopping
        assert (await node.record()).status is Status.COMPLETED


@pytest.mark.parametrize("stream", [True, False])
async def test_who_has_the_answer_does_not_wait_for_the_ledger(stream: bool) -> None:
    async with answering("wire") as node:
        node.settles.clear()
        client = await node.client()
        # On the same connection, too.
        for _ in range(2):
            await client.send(chat(stream=stream))
            asked = await node.next()
            await (asked.stream(WHOLE) if stream else asked.answer("200 OK", JSON))
            assert (await client.answer()).body == (WHOLE if stream else JSON)
        node.settles.set()
        assert [record.status for record in await node.records()] == [Status.COMPLETED] * 2


@BOTH_WAYS
@pytest.mark.parametrize("whole", [True, False])
async def test_nothing_of_a_connection_that_has_ended_waits_for_the_garbage_collector(way: Way, whole: bool) -> None:
    def connections() -> int:
        return sum(isinstance(one, HttpProtocol) for one in gc.get_objects())

    async with answering(way) as node:
        gc.collect()
        gc.disable()
        try:
            client = await node.client()
            await client.send(chat())
            asked = await node.next()
            if whole:
                await asked.stream(WHOLE)
                await client.answer()
                client.leave()
            else:
                await asked.say(STREAM, *chunked(EVENT))
                await client.head()
                client.leave()
                await asked.say(*chunked(USAGE + DONE), b"0\r\n\r\n")
            # That of who looks is there.
            assert await node.at_rest(connections) == 1
        finally:
            gc.enable()
