"""A stream whose upstream is silent, or breaks off: what its client reads, and when its leaving is noticed."""

import asyncio
import json
from decimal import Decimal

import pytest
from relay_world import DONE, STREAM, USAGE, Dictated, chunk, exchange

from faregate.gateway import relay
from faregate.gateway.relay import CLIENT_LEFT, KEEP_ALIVE
from faregate.records import Status


@pytest.fixture
def talkative(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits is told soon that somebody is there."""
    monkeypatch.setattr(relay, "SILENCE_SECONDS", 0.02)


def last_event(received: bytes) -> dict[str, object]:
    """The last event as Open WebUI reads it: a line of its own."""
    line = [line for line in received.decode().split("\n") if line.startswith("data:")][-1]
    return json.loads(line[5:])


async def test_who_waits_for_a_silent_upstream_is_told_again_and_again_that_somebody_is_there(talkative: None) -> None:
    async with exchange(upstream := Dictated()) as one:
        await upstream.say(STREAM)
        await one.until_received(KEEP_ALIVE * 3)
        assert one.received == KEEP_ALIVE * (len(one.received) // len(KEEP_ALIVE))
        await upstream.say(chunk("Groq"))
        await one.until_received(chunk("Groq") + KEEP_ALIVE)
        await upstream.say(chunk("Groq", USAGE) + DONE)
        await upstream.end()
        record = await one.record()
    assert one.received.replace(KEEP_ALIVE, b"") == chunk("Groq") + chunk("Groq", USAGE) + DONE
    assert (record.status, record.cost) == (Status.COMPLETED, Decimal("0.25"))


async def test_a_comment_never_comes_between_the_bytes_of_an_event(talkative: None) -> None:
    event = chunk("Groq")
    async with exchange(upstream := Dictated()) as one:
        await upstream.say(STREAM + event + event[:30])
        await one.until_received(event + KEEP_ALIVE)
        await upstream.say(event[30:-1])
        await one.until_received(KEEP_ALIVE * 2)
        await upstream.say(event[-1:])
        await one.until_received(event + KEEP_ALIVE)
    assert one.received.replace(KEEP_ALIVE, b"") == event * 2


async def test_nothing_comes_behind_an_error_or_the_end_while_fees_may_still_be_told(talkative: None) -> None:
    for last in (b'data: {"error":{"code":502,"message":"no"}}\n\n', DONE):
        async with exchange(upstream := Dictated()) as one:
            await upstream.say(STREAM + chunk("Groq") + last)
            await one.until_received(b"\n\n")
            await asyncio.wait({one.task}, timeout=0.1)
            assert not one.task.done()
            await upstream.end()
            await one.record()
        assert KEEP_ALIVE not in one.received.partition(chunk("Groq"))[2]


async def test_comments_do_not_make_upstreams_silence_endless(talkative: None) -> None:
    async with exchange(upstream := Dictated(), patience=0.1) as one:
        await upstream.say(STREAM + chunk("Groq"))
        record = await one.record()
    assert one.received.count(KEEP_ALIVE) == 4
    assert record.reason == "upstream was silent for 0.1 s in the middle of its answer"
    assert last_event(one.received)["error"]["code"] == "upstream_cut"


async def test_a_client_that_leaves_is_noticed_while_upstream_is_silent() -> None:
    async with exchange(upstream := Dictated()) as one:
        await upstream.say(STREAM + chunk("OpenAI"))
        await one.begun.wait()
        one.client_leaves.set()
        # Upstream says nothing more: all there is to notice is the client.
        record = await one.record()
    assert (record.status, record.outcome, record.reason) == (Status.PENDING, Status.ABORTED, CLIENT_LEFT)


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "closed"])
@pytest.mark.parametrize("cut", [7, 40, -10, -3])
async def test_a_stream_that_breaks_off_within_an_event_ends_with_an_error_that_can_be_read(
    cut: int, reset: bool
) -> None:
    async with exchange(upstream := Dictated()) as one:
        await upstream.say(STREAM + chunk("Groq"))
        await one.until_received(b"\n\n")
        await upstream.say(chunk("Groq")[:cut])
        await (upstream.reset() if reset else upstream.end())
        record = await one.record()
    assert last_event(one.received)["error"]["code"] == "upstream_cut"
    assert one.received.startswith(chunk("Groq") + b"data: {")
    assert one.received.count(b"data:") == 2
    assert (record.status, record.outcome) == (Status.PENDING, Status.FAILED)


async def test_an_event_that_lacks_nothing_but_its_end_is_given_one() -> None:
    async with exchange(upstream := Dictated()) as one:
        await upstream.say(STREAM + chunk("Groq") + chunk("Groq", USAGE) + DONE[:-1])
        await upstream.end()
        record = await one.record()
    assert one.received == chunk("Groq") + chunk("Groq", USAGE) + DONE
    assert record.status is Status.COMPLETED


async def test_events_behind_an_error_are_not_passed_on_however_they_come() -> None:
    error = b'data: {"id":"gen-1","error":{"code":502,"message":"no"}}\n\n'
    async with exchange(upstream := Dictated()) as one:
        await upstream.say(STREAM + chunk("Groq"))
        await one.until_received(chunk("Groq"))
        await upstream.say(error)
        await one.until_received(b'"param":null}}\n\n')
        await upstream.say(chunk("Groq") * 3)
        await upstream.say(DONE)
        await upstream.end()
        await one.record()
    assert one.received.count(b'"content"') == 1
    assert b"[DONE]" not in one.received
