"""The spans of time that sums are kept of: pure arithmetic on seconds since the epoch, which counts no leap seconds."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

HOUR = 3600
DAY = 24 * HOUR

SPANS = (1, 24, 8 * 24, 64 * 24)
"""Hours that the spans have: each of a kind begins at a multiple of its length, so that it is whole ones of the kind
before. Ninety days are some of them, instead of two thousand hours."""


class Stretch(NamedTuple):
    """Spans of so many `hours` that follow each other, from `since` up to but without `until` (epoch seconds).

    They are added, or taken away again where the `sign` is -1.
    """

    hours: int
    since: float
    until: float
    sign: int = 1

    def starts(self) -> list[float]:
        """The beginnings of its spans."""
        length = self.hours * HOUR
        return [self.since + n * length for n in range(round((self.until - self.since) / length))]


def stretches(since: float, until: float, spans: Sequence[int]) -> Iterator[Stretch]:
    """What covers the time from `since` up to but without `until`, both whole hours, once: the longest that fit."""
    if since >= until:
        return
    *shorter, longest = spans
    first, last = ceiling(since, longest * HOUR), floor(until, longest * HOUR)
    if first > last:
        # It is within one of these, so shorter ones make it up, as whole hours always do.
        yield from stretches(since, until, shorter)
        return
    yield from stretches(since, first, shorter)
    if first < last:
        yield Stretch(longest, first, last)
    yield from stretches(last, until, shorter)


def fewest(since: float, until: float, filled: tuple[float, float]) -> tuple[Stretch, ...]:
    """What makes up the time from `since` up to but without `until`, both whole hours, of the fewest spans.

    What longer ones have too much is taken away again. Outside of `filled`, the time from the first to the end of the
    last sum, there is nothing to add or to take away.
    """
    return tuple(_within(_fewest(since, until, filled, SPANS), *filled))


def _fewest(since: float, until: float, filled: tuple[float, float], spans: Sequence[int]) -> tuple[Stretch, ...]:
    hours, *longer = spans
    ways = [_between(hours, since, until)]
    if longer:
        step = longer[0] * HOUR
        # Each edge is moved to one of the two next to it, and what is between is added or taken away.
        for begin, end in product(_around(since, step), _around(until, step)):
            if begin <= end:
                edges = _between(hours, since, begin) + _between(hours, end, until)
                ways.append(edges + _fewest(begin, end, filled, longer))
    return min(ways, key=lambda way: _work(_within(way, *filled)))


def _between(hours: int, since: float, until: float) -> tuple[Stretch, ...]:
    if since == until:
        return ()
    return (Stretch(hours, since, until) if since < until else Stretch(hours, until, since, -1),)


def _around(seconds: float, step: int) -> tuple[float, ...]:
    return tuple(dict.fromkeys((floor(seconds, step), ceiling(seconds, step))))


def _within(parts: Iterable[Stretch], first: float, last: float) -> Iterator[Stretch]:
    """Those spans of `parts` that have some of the time from `first` up to but without `last`."""
    for part in parts:
        step = part.hours * HOUR
        since, until = max(part.since, floor(first, step)), min(part.until, ceiling(last, step))
        if since < until:
            yield part._replace(since=since, until=until)


def _work(parts: Iterable[Stretch]) -> tuple[int, int]:
    counts = [round((part.until - part.since) / (part.hours * HOUR)) for part in parts]
    return sum(counts), len(counts)


def floor(seconds: float, step: int) -> float:
    """The last multiple of `step` that is not after `seconds`."""
    return float(seconds // step * step)


def ceiling(seconds: float, step: int) -> float:
    """The first multiple of `step` that is not before `seconds`."""
    return -floor(-seconds, step)
