"""Calendar windows in a time zone, derived from the clock alone: nothing is stored, nothing has to be reset.

Windows tile time: each instant lies in exactly one window of a kind, the next starts where it ends. Where the
clocks are put forward or back the rules are:

* A day (week, month) starts at the first instant at which the local clock shows its midnight or later. A local
  day therefore has 23 or 25 hours where it must, and where midnight is skipped the day starts at the change. A day
  that has begun stays begun, should the clock go back over its midnight.
* An hour starts where the local clock shows a whole hour, and where it is put forward or back. So the hour
  that comes twice is two windows, no window is longer than an hour, and in a half-hour zone they start at the
  local :00.
"""

from datetime import date, datetime, timedelta
from math import floor
from zoneinfo import ZoneInfo

from faregate.policy.model import Window

HOUR = 3600
"""Seconds of an hour."""

UNBOUNDED = (0, 0)
"""The bounds where the calendar has no say."""


class Calendar:
    """The calendar of one time zone."""

    def __init__(self, zone: ZoneInfo) -> None:
        self._zone = zone
        self._latest: dict[Window, tuple[int, int]] = {}

    @property
    def zone(self) -> ZoneInfo:
        """The time zone whose midnights these are."""
        return self._zone

    def bounds(self, window: Window, at: float) -> tuple[int, int]:
        """The `window` that contains `at`: [starts, ends), all in seconds since the epoch.

        `minute`, a sliding rate, and `total` have no bounds: (0, 0).
        """
        if window is Window.MINUTE or window is Window.TOTAL:
            return UNBOUNDED
        latest = self._latest.get(window)
        if latest is not None and latest[0] <= at < latest[1]:
            return latest
        moment = floor(at)
        bounds = self._hour(moment) if window is Window.HOUR else self._dates(window, moment)
        self._latest[window] = bounds
        return bounds

    def _hour(self, at: int) -> tuple[int, int]:
        local = self._local(at)
        starts = at - local.minute * 60 - local.second
        ends = starts + HOUR
        here = self._offset(at)
        if self._offset(starts) != here:
            starts = self._change(starts, at)
        if self._offset(ends - 1) != here:
            ends = self._change(at, ends - 1)
        return starts, ends

    def _dates(self, window: Window, at: int) -> tuple[int, int]:
        first = _first_date(window, self._local(at).date())
        starts, following = self._midnight(first), _next_date(window, first)
        ends = self._midnight(following)
        while at >= ends:
            # The clock went back over a midnight that had already begun the next window.
            first, starts, following = following, ends, _next_date(window, following)
            ends = self._midnight(following)
        return starts, ends

    def _midnight(self, day: date) -> int:
        """The first instant at which the local clock shows `day` 00:00 or later."""
        naive = datetime(day.year, day.month, day.day, tzinfo=self._zone)
        # PEP 495: fold 0 reads a time with the offset before a change, fold 1 with the one after. A time that comes
        # twice is meant the first time; for one that is skipped the order of the two is reversed.
        before, after = floor(naive.timestamp()), floor(naive.replace(fold=1).timestamp())
        return self._change(after, before) if after < before else before

    def _change(self, low: int, high: int) -> int:
        """The first second in (`low`, `high`] with another UTC offset than `low`."""
        old = self._offset(low)
        while high - low > 1:
            middle = (low + high) // 2
            if self._offset(middle) == old:
                low = middle
            else:
                high = middle
        return high

    def _local(self, at: int) -> datetime:
        return datetime.fromtimestamp(at, self._zone)

    def _offset(self, at: int) -> timedelta | None:
        return self._local(at).utcoffset()


def _first_date(window: Window, day: date) -> date:
    if window is Window.MONTH:
        return day.replace(day=1)
    if window is Window.WEEK:
        return day - timedelta(days=day.weekday())
    return day


def _next_date(window: Window, first: date) -> date:
    if window is Window.MONTH:
        return first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
    return first + timedelta(days=7 if window is Window.WEEK else 1)
