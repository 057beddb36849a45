"""The counters that a request touches, or a record is charged to."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from faregate.ledger.port import Counter
from faregate.policy.model import Scope, Window
from faregate.policy.patterns import limit_applies
from faregate.policy.rulebook import Shape
from faregate.policy.windows import Calendar


def counters_for(
    shapes: Iterable[Shape],
    calendar: Calendar,
    *,
    user_id: str,
    groups: Sequence[str],
    models: Sequence[str],
    at: float,
) -> list[Counter]:
    """The counters of `shapes` for one person and the models that may answer, in the order of `shapes`.

    `at` is the moment of admission (seconds since the epoch): it decides the calendar windows. A group counter
    comes once for each of the person's groups.
    """
    counters: list[Counter] = []
    bounds: dict[Window | None, tuple[int, int]] = {None: (0, 0), Window.MINUTE: (0, 0), Window.TOTAL: (0, 0)}
    for shape in shapes:
        if shape.models and not limit_applies(shape.models, models):
            continue
        window = shape.window
        if window not in bounds and window is not None:
            bounds[window] = calendar.bounds(window, at)
        starts, ends = bounds[window]
        if shape.scope is Scope.USER:
            scope_ids: Iterable[str] = (user_id,)
        elif shape.scope is Scope.GROUP:
            # A group that is named twice is still one group: its counter must not be charged twice.
            scope_ids = dict.fromkeys(groups)
        else:
            scope_ids = ("",)
        counters.extend(
            Counter(shape.scope, scope_id, shape.meter, window, shape.models, starts, ends) for scope_id in scope_ids
        )
    return counters


MOST_REMEMBERED = 16_384
"""Combinations of a person, their groups and models whose counters are remembered."""


class _Known(NamedTuple):
    shapes: tuple[Shape, ...]
    since: float
    until: float
    counters: tuple[Counter, ...]


class Concerned:
    """`counters_for`, remembered: who asks again in the same windows touches the same counters."""

    def __init__(self, calendar: Calendar) -> None:
        self._calendar = calendar
        self._known: dict[tuple[str, tuple[str, ...], tuple[str, ...]], _Known] = {}

    def by(
        self, shapes: tuple[Shape, ...], user_id: str, groups: tuple[str, ...], models: tuple[str, ...], at: float
    ) -> tuple[Counter, ...]:
        """As `counters_for`. The same object for as long as nothing changes, if `shapes` is the same object too."""
        key = user_id, groups, models
        known = self._known.get(key)
        if known is None or known.shapes is not shapes or not known.since <= at < known.until:
            counters = counters_for(shapes, self._calendar, user_id=user_id, groups=groups, models=models, at=at)
            bounded = [counter for counter in counters if counter.ends]
            since = max((counter.starts for counter in bounded), default=float("-inf"))
            until = min((counter.ends for counter in bounded), default=float("inf"))
            known = _Known(shapes, since, until, tuple(counters))
            if len(self._known) >= MOST_REMEMBERED:
                self._known.clear()
            self._known[key] = known
        return known.counters
