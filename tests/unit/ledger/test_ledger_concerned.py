"""The counters that a person touches, remembered from one request to the next."""

from zoneinfo import ZoneInfo

import pytest

from faregate.ledger import counters
from faregate.ledger.counters import Concerned, counters_for
from faregate.policy.model import Meter, Scope, Window
from faregate.policy.rulebook import Shape
from faregate.policy.windows import Calendar

NOON = 1_795_435_200.0
HOUR = 3_600
CALENDAR = Calendar(ZoneInfo("UTC"))
SHAPES = (
    Shape(Scope.USER, Meter.USD, Window.DAY),
    Shape(Scope.USER, Meter.REQUESTS, Window.HOUR),
    Shape(Scope.GROUP, Meter.TOKENS, Window.MONTH),
    Shape(Scope.EVERYONE, Meter.USD, Window.TOTAL, ("openai/*",)),
    Shape(Scope.USER, Meter.CONCURRENT, None),
)


@pytest.mark.parametrize("user_id", ["ada", "zoe"])
@pytest.mark.parametrize("groups", [(), ("physics",), ("maths", "physics")])
@pytest.mark.parametrize("models", [("openai/x",), ("acme/y",)])
def test_they_are_those_that_would_be_worked_out(
    user_id: str, groups: tuple[str, ...], models: tuple[str, ...]
) -> None:
    concerned = Concerned(CALENDAR)
    for at in (NOON, NOON + 1, NOON + HOUR, NOON, NOON + 24 * HOUR, NOON + 40 * 24 * HOUR, NOON - HOUR):
        expected = counters_for(SHAPES, CALENDAR, user_id=user_id, groups=groups, models=models, at=at)
        assert concerned.by(SHAPES, user_id, groups, models, at) == tuple(expected)


def test_they_are_the_same_object_until_a_window_ends_or_a_shape_is_new() -> None:
    concerned = Concerned(CALENDAR)
    first = concerned.by(SHAPES, "ada", (), ("openai/x",), NOON)
    assert concerned.by(SHAPES, "ada", (), ("openai/x",), NOON + HOUR - 1) is first
    assert concerned.by(SHAPES, "ada", (), ("openai/x",), NOON + HOUR) is not first
    more = (*SHAPES, Shape(Scope.USER, Meter.TOKENS, Window.WEEK))
    assert len(concerned.by(more, "ada", (), ("openai/x",), NOON)) == len(first) + 1


def test_nobody_is_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "MOST_REMEMBERED", 2)
    concerned = Concerned(CALENDAR)
    first = concerned.by(SHAPES, "u0", (), ("m",), NOON)
    for number in range(1, 4):
        concerned.by(SHAPES, f"u{number}", (), ("m",), NOON)
    again = concerned.by(SHAPES, "u0", (), ("m",), NOON)
    assert again == first
    assert again is not first
