"""What a client is told about the ledger, in a header of whatever answer it gets."""

from typing import Any

import pytest

from faregate.gateway.client import Client
from faregate.gateway.errors import ApiError, ledger_away


class Ledger:
    """A ledger as a client sees it: there, or away."""

    away = False


class Caller:
    """The other end of an exchange."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.sent: list[Any] = []
        self.client = Client("req-1", self._receive, self._send, 1.0, lambda: self.ledger.away)

    @property
    def told(self) -> list[bytes]:
        """What the answer says about the ledger."""
        return [value for name, value in self.sent[0]["headers"] if name == b"x-faregate-ledger"]

    async def _receive(self) -> Any:
        raise AssertionError("nobody listens")

    async def _send(self, message: Any) -> None:
        self.sent.append(message)


async def stream(client: Client) -> None:
    await client.start(200, b"text/event-stream")
    await client.send(b"data: {}\n\n")
    await client.end()


async def json(client: Client) -> None:
    await client.answer(200, b"application/json", b"{}")


async def error(client: Client) -> None:
    await client.fail(ApiError(429, "No.", "quota_exceeded", "user_usd_day", headers={"retry-after": "7"}))


@pytest.fixture
def caller() -> Caller:
    return Caller()


ANSWERS = pytest.mark.parametrize("answer", [stream, json, error])


@ANSWERS
async def test_an_answer_says_nothing_about_a_ledger_that_is_there(caller: Caller, answer: Any) -> None:
    await answer(caller.client)
    assert caller.told == []


@ANSWERS
async def test_every_answer_says_that_the_ledger_is_away(caller: Caller, answer: Any) -> None:
    caller.ledger.away = True
    await answer(caller.client)
    assert caller.told == [b"away"]


@ANSWERS
@pytest.mark.parametrize("back", [False, True])
async def test_a_request_without_a_hold_is_said_to_be_unchecked_also_when_the_ledger_is_back(
    caller: Caller, answer: Any, back: bool
) -> None:
    caller.client.unchecked = True
    caller.ledger.away = not back
    await answer(caller.client)
    assert caller.told == [b"unchecked"]


@pytest.mark.parametrize("back", [False, True])
async def test_who_is_refused_for_an_outage_is_told_once_that_it_was_one(caller: Caller, back: bool) -> None:
    caller.ledger.away = not back
    await caller.client.fail(ledger_away("the help desk", "Redis is away"))
    assert caller.told == [b"away"]
