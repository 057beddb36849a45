"""Signed tokens, and for how long they are believed without being looked at again."""

import time

import jwt
import pytest

from faregate.gateway import tokens
from faregate.gateway.errors import ApiError
from faregate.gateway.tokens import BELIEVED_SECONDS, LEEWAY, Tokens

SECRET = "a secret that is long enough for HS256"


class Clock:
    """The time as this machine sees it, and as the test wants it to go on."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


def token(**claims: object) -> str:
    return jwt.encode({"sub": "ada", **claims}, SECRET, "HS256")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def known(clock: Clock) -> Tokens:
    return Tokens((SECRET,), required=("sub",), issuer=None, clock=clock)


def test_a_token_is_verified_once(known: Tokens) -> None:
    signed = token(exp=time.time() + 100)
    assert known.claims(signed) is known.claims(signed)


def test_one_that_was_believed_is_looked_at_again_when_its_time_is_over(known: Tokens, clock: Clock) -> None:
    signed = token(exp=time.time() + 100)
    first = known.claims(signed)
    clock.ahead = 90 + LEEWAY
    assert known.claims(signed) is first
    clock.ahead = 101 + LEEWAY
    assert known.claims(signed) is not first


@pytest.mark.parametrize("claims", [{}, {"exp": 2**40}])
def test_one_without_an_end_is_not_believed_for_ever(known: Tokens, clock: Clock, claims: dict[str, object]) -> None:
    signed = token(**claims)
    first = known.claims(signed)
    clock.ahead = BELIEVED_SECONDS + 1
    assert known.claims(signed) is not first


def test_what_was_refused_is_refused_again(known: Tokens) -> None:
    for _ in range(2):
        with pytest.raises(ApiError):
            known.claims(token(exp=time.time() - 2 * LEEWAY))
        with pytest.raises(ApiError):
            known.claims(token()[:-4] + "AAAA")


def test_no_more_are_remembered_than_there_is_room_for(known: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MOST_BELIEVED", 2)
    signed = [token(n=number) for number in range(4)]
    first = [known.claims(one) for one in signed]
    assert known.claims(signed[3]) is first[3]
    assert known.claims(signed[0]) is not first[0]
