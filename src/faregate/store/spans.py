"""The spans of time that sums are kept of: pure arithmetic on seconds since the epoch, which counts no leap seconds."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

HOUR = 3600
DAY = 24 * HOUR

SPANS = (1, 24, 8 * 24, 64 * 24)
"""Hours that the spans have: each of a kind begins at a multiple of its length, so that it is whole ones of the kind
before. Ninety days are a dozen of them, instead of two thousand hours."""


class Stretch(NamedTuple):
    """Spans of so many `hours` that follow each other, from `since` up to but without `until` (epoch seconds)."""

    hours: int
    since: float
    until: float

    def starts(self) -> list[float]:
        """The beginnings of its spans."""
        length = self.hours * HOUR
        return [self.since + n * length for n in range(round((self.until - self.since) / length))]


def stretches(since: float, until: float, spans: Sequence[int] = SPANS) -> Iterator[Stretch]:
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


def floor(seconds: float, step: int) -> float:
    """The last multiple of `step` that is not after `seconds`."""
    return float(seconds // step * step)


def ceiling(seconds: float, step: int) -> float:
    """The first multiple of `step` that is not before `seconds`."""
    return -floor(-seconds, step)
