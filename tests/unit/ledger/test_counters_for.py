"""Which counters a request touches."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from faregate.ledger.counters import counters_for
from faregate.ledger.port import Counter
from faregate.policy.model import Meter, Scope, Window
from faregate.policy.rulebook import Shape
from faregate.policy.windows import Calendar

AMSTERDAM = Calendar(ZoneInfo("Europe/Amsterdam"))
AT = datetime(2026, 7, 15, 22, 30, tzinfo=UTC).timestamp()


def touched(*shapes: Shape, groups: tuple[str, ...] = (), models: tuple[str, ...] = ("openai/gpt-5",)) -> list[Counter]:
    return counters_for(shapes, AMSTERDAM, user_id="ada", groups=groups, models=models, at=AT)


def test_a_persons_counter_is_the_persons_own():
    (counter,) = touched(Shape(Scope.USER, Meter.USD, Window.TOTAL))
    assert counter == Counter(Scope.USER, "ada", Meter.USD, Window.TOTAL)


def test_a_group_limit_counts_once_for_each_of_the_persons_groups():
    shape = Shape(Scope.GROUP, Meter.USD, Window.TOTAL)
    assert [counter.scope_id for counter in touched(shape, groups=("staff", "lab", "staff"))] == ["staff", "lab"]
    assert touched(shape) == []


def test_a_limit_for_everyone_has_one_counter_without_a_name():
    assert [counter.scope_id for counter in touched(Shape(Scope.EVERYONE, Meter.USD, Window.TOTAL))] == [""]


def test_calendar_counters_carry_the_window_of_admission_in_the_deployments_time_zone():
    (day,) = touched(Shape(Scope.USER, Meter.USD, Window.DAY))
    # 22:30 UTC is half past midnight of the 16th in Amsterdam.
    assert datetime.fromtimestamp(day.starts, UTC) == datetime(2026, 7, 15, 22, tzinfo=UTC)
    assert datetime.fromtimestamp(day.ends, UTC) == datetime(2026, 7, 16, 22, tzinfo=UTC)


@pytest.mark.parametrize("window", [Window.MINUTE, Window.TOTAL, None])
def test_the_calendar_has_no_say_in_sliding_total_and_parallel_counters(window: Window | None):
    meter = Meter.CONCURRENT if window is None else Meter.REQUESTS
    (counter,) = touched(Shape(Scope.USER, meter, window))
    assert (counter.window, counter.starts, counter.ends) == (window, 0, 0)


def test_a_limit_on_models_counts_where_one_of_the_candidates_matches():
    shape = Shape(Scope.USER, Meter.USD, Window.TOTAL, ("anthropic/*",))
    assert touched(shape) == []
    (counter,) = touched(shape, models=("openai/gpt-5", "anthropic/claude-opus-4.5"))
    assert counter.models == ("anthropic/*",)


def test_counters_come_in_the_order_of_the_limits():
    shapes = [Shape(Scope.USER, meter, Window.HOUR) for meter in (Meter.USD, Meter.REQUESTS, Meter.TOKENS)]
    assert [counter.meter for counter in touched(*shapes)] == [Meter.USD, Meter.REQUESTS, Meter.TOKENS]
