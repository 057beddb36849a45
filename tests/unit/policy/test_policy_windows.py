"""Windows follow the local calendar: over daylight saving, ends of months and years, and long silence."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from faregate.policy.model import Window
from faregate.policy.windows import Calendar

CALENDAR_WINDOWS = (Window.HOUR, Window.DAY, Window.WEEK, Window.MONTH)
ZONES = (
    "UTC",
    "Europe/Amsterdam",
    "Asia/Bangkok",
    "America/St_Johns",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",  # half an hour of daylight saving
    "Africa/Cairo",  # daylight saving starts at midnight
    "America/Havana",  # ends at 01:00, so that midnight comes twice
    "America/Sao_Paulo",
    "America/Toronto",  # 1919: from 23:30 to 00:30
    "Pacific/Apia",  # 2011: no 30 December
)


def local(zone: str, *parts: int, fold: int = 0) -> int:
    return int(datetime(*parts, tzinfo=ZoneInfo(zone), fold=fold).timestamp())


def utc(*parts: int) -> int:
    return int(datetime(*parts, tzinfo=UTC).timestamp())


def hours(bounds: tuple[int, int]) -> float:
    return (bounds[1] - bounds[0]) / 3600


@pytest.mark.parametrize("zone", ["UTC", "Europe/Amsterdam", "Asia/Bangkok", "America/St_Johns"])
def test_each_window_goes_from_its_local_start_to_the_next(zone):
    at = local(zone, 2026, 11, 25, 14, 31, 7)  # a Wednesday
    calendar = Calendar(ZoneInfo(zone))
    assert calendar.bounds(Window.HOUR, at) == (local(zone, 2026, 11, 25, 14), local(zone, 2026, 11, 25, 15))
    assert calendar.bounds(Window.DAY, at) == (local(zone, 2026, 11, 25), local(zone, 2026, 11, 26))
    assert calendar.bounds(Window.WEEK, at) == (local(zone, 2026, 11, 23), local(zone, 2026, 11, 30))
    assert calendar.bounds(Window.MONTH, at) == (local(zone, 2026, 11, 1), local(zone, 2026, 12, 1))


def test_the_day_in_bangkok_starts_at_five_in_the_afternoon_utc():
    assert Calendar(ZoneInfo("Asia/Bangkok")).bounds(Window.DAY, utc(2026, 11, 23, 17)) == (
        utc(2026, 11, 23, 17),
        utc(2026, 11, 24, 17),
    )


def test_an_hour_in_st_johns_starts_at_half_past_in_utc():
    assert Calendar(ZoneInfo("America/St_Johns")).bounds(Window.HOUR, utc(2026, 7, 1, 12, 29, 59)) == (
        utc(2026, 7, 1, 11, 30),
        utc(2026, 7, 1, 12, 30),
    )


@pytest.mark.parametrize("window", [Window.MINUTE, Window.TOTAL])
def test_a_sliding_minute_and_a_total_have_no_bounds(window):
    assert Calendar(ZoneInfo("UTC")).bounds(window, utc(2026, 1, 1)) == (0, 0)


def test_the_calendar_says_its_zone():
    assert Calendar(ZoneInfo("Asia/Bangkok")).zone.key == "Asia/Bangkok"


@pytest.mark.parametrize(
    ("zone", "shorter", "longer"),
    [
        ("Europe/Amsterdam", (2026, 3, 29), (2026, 10, 25)),
        ("America/St_Johns", (2026, 3, 8), (2026, 11, 1)),
    ],
)
def test_days_of_change_have_23_and_25_hours(zone, shorter, longer):
    calendar = Calendar(ZoneInfo(zone))
    for day, length in ((shorter, 23), (longer, 25)):
        for hour in (0, 12, 23):
            bounds = calendar.bounds(Window.DAY, local(zone, *day, hour))
            assert bounds[0] == local(zone, *day)
            assert hours(bounds) == length


@pytest.mark.parametrize(("year", "month", "day", "length"), [(2026, 3, 25, 7 * 24 - 1), (2026, 10, 21, 7 * 24 + 1)])
def test_weeks_of_change_are_an_hour_shorter_and_longer(year, month, day, length):
    zone = "Europe/Amsterdam"
    assert hours(Calendar(ZoneInfo(zone)).bounds(Window.WEEK, local(zone, year, month, day, 9))) == length


@pytest.mark.parametrize(("month", "length"), [(3, 31 * 24 - 1), (10, 31 * 24 + 1), (4, 30 * 24)])
def test_months_of_change_are_an_hour_shorter_and_longer(month, length):
    zone = "Europe/Amsterdam"
    assert hours(Calendar(ZoneInfo(zone)).bounds(Window.MONTH, local(zone, 2026, month, 15))) == length


def test_the_hour_that_comes_twice_is_two_windows():
    zone = "Europe/Amsterdam"
    calendar = Calendar(ZoneInfo(zone))
    first = calendar.bounds(Window.HOUR, local(zone, 2026, 10, 25, 2, 30))
    second = calendar.bounds(Window.HOUR, local(zone, 2026, 10, 25, 2, 30, fold=1))
    assert first == (utc(2026, 10, 25, 0), utc(2026, 10, 25, 1))
    assert second == (utc(2026, 10, 25, 1), utc(2026, 10, 25, 2))


def test_the_hour_that_is_skipped_is_no_window():
    calendar = Calendar(ZoneInfo("Europe/Amsterdam"))
    before = calendar.bounds(Window.HOUR, utc(2026, 3, 29, 0, 59, 59))
    after = calendar.bounds(Window.HOUR, utc(2026, 3, 29, 1))
    assert before == (utc(2026, 3, 29, 0), utc(2026, 3, 29, 1))
    assert after == (utc(2026, 3, 29, 1), utc(2026, 3, 29, 2))


def test_a_day_whose_midnight_is_skipped_starts_at_the_change():
    zone = "Africa/Cairo"  # 2024-04-26: from 00:00 to 01:00
    bounds = Calendar(ZoneInfo(zone)).bounds(Window.DAY, local(zone, 2024, 4, 26, 12))
    assert bounds == (local(zone, 2024, 4, 26, 1), local(zone, 2024, 4, 27))
    assert hours(bounds) == 23


def test_a_day_whose_midnight_lies_inside_a_gap_starts_at_the_end_of_the_gap():
    zone = "America/Toronto"  # 1919-03-30: from 23:30 to 00:30 of the 31st
    assert Calendar(ZoneInfo(zone)).bounds(Window.DAY, local(zone, 1919, 3, 31, 12))[0] == local(
        zone, 1919, 3, 31, 0, 30
    )


def test_a_day_whose_midnight_comes_twice_starts_at_the_first():
    zone = "America/Havana"  # 2019-11-03: from 01:00 back to 00:00
    bounds = Calendar(ZoneInfo(zone)).bounds(Window.DAY, local(zone, 2019, 11, 3, 0, 30, fold=1))
    assert bounds == (local(zone, 2019, 11, 3), local(zone, 2019, 11, 4))
    assert hours(bounds) == 25


def test_a_day_that_has_begun_stays_begun_when_the_clock_goes_back_over_midnight():
    zone = "America/St_Johns"  # 2010-11-07: from 00:01 back to 23:01 of the 6th
    again = local(zone, 2010, 11, 6, 23, 30, fold=1)
    bounds = Calendar(ZoneInfo(zone)).bounds(Window.DAY, again)
    assert bounds == (local(zone, 2010, 11, 7), local(zone, 2010, 11, 8))


def test_a_date_that_a_country_skipped_is_no_window():
    zone = "Pacific/Apia"
    calendar = Calendar(ZoneInfo(zone))
    before = calendar.bounds(Window.DAY, local(zone, 2011, 12, 29, 12))
    after = calendar.bounds(Window.DAY, local(zone, 2011, 12, 31, 12))
    assert before[1] == after[0]
    assert (hours(before), hours(after)) == (24, 24)


@pytest.mark.parametrize("zone", ["UTC", "Europe/Amsterdam", "Asia/Bangkok", "America/St_Johns"])
@pytest.mark.parametrize(
    ("last_day", "first_day"),
    [
        ((2024, 2, 29), (2024, 3, 1)),
        ((2026, 2, 28), (2026, 3, 1)),
        ((2026, 4, 30), (2026, 5, 1)),
        ((2026, 12, 31), (2027, 1, 1)),
    ],
)
def test_months_and_years_end_at_local_midnight(zone, last_day, first_day):
    calendar = Calendar(ZoneInfo(zone))
    midnight = local(zone, *first_day)
    for window in (Window.DAY, Window.MONTH):
        assert calendar.bounds(window, midnight - 1)[1] == midnight
        assert calendar.bounds(window, midnight)[0] == midnight
    assert calendar.bounds(Window.DAY, midnight - 1)[0] == local(zone, *last_day)
    assert calendar.bounds(Window.MONTH, midnight - 1)[0] == local(zone, *last_day[:2], 1)


def test_a_week_runs_from_monday_over_the_end_of_the_year():
    zone = "Europe/Amsterdam"
    expected = (local(zone, 2026, 12, 28), local(zone, 2027, 1, 4))
    calendar = Calendar(ZoneInfo(zone))
    assert calendar.bounds(Window.WEEK, local(zone, 2026, 12, 31, 23, 59, 59)) == expected
    assert calendar.bounds(Window.WEEK, local(zone, 2027, 1, 1)) == expected


@pytest.mark.parametrize("zone", ["UTC", "Europe/Amsterdam", "Asia/Bangkok", "America/St_Johns"])
@pytest.mark.parametrize("days", [1, 40, 400, 4000])
def test_after_long_silence_the_window_is_the_one_of_now(zone, days):
    calendar = Calendar(ZoneInfo(zone))
    start = datetime(2026, 1, 31, 12, tzinfo=ZoneInfo(zone))
    later = start + timedelta(days=days)
    for window in CALENDAR_WINDOWS:
        calendar.bounds(window, start.timestamp())
        remembered = calendar.bounds(window, later.timestamp())
        assert remembered == Calendar(ZoneInfo(zone)).bounds(window, later.timestamp())
        assert remembered[0] <= later.timestamp() < remembered[1]


def test_a_late_settlement_finds_the_window_of_its_admission():
    zone = "Europe/Amsterdam"
    calendar = Calendar(ZoneInfo(zone))
    today, yesterday = local(zone, 2026, 11, 23, 0, 5), local(zone, 2026, 11, 22, 23, 55)
    assert calendar.bounds(Window.DAY, today)[0] == local(zone, 2026, 11, 23)
    assert calendar.bounds(Window.DAY, yesterday) == (local(zone, 2026, 11, 22), local(zone, 2026, 11, 23))
    assert calendar.bounds(Window.DAY, today)[0] == local(zone, 2026, 11, 23)


def test_the_last_fraction_of_a_second_still_belongs_to_the_window():
    midnight = utc(2026, 11, 24)
    calendar = Calendar(ZoneInfo("UTC"))
    assert calendar.bounds(Window.DAY, midnight - 0.001)[1] == midnight
    assert calendar.bounds(Window.DAY, midnight)[0] == midnight


@given(
    zone=st.sampled_from(ZONES),
    window=st.sampled_from(CALENDAR_WINDOWS),
    at=st.integers(utc(1970, 1, 1), utc(2100, 1, 1)),
)
@example(zone="America/St_Johns", window=Window.HOUR, at=local("America/St_Johns", 2010, 11, 7, 0, 0, 30))
@example(zone="America/St_Johns", window=Window.DAY, at=local("America/St_Johns", 2010, 11, 6, 23, 30, fold=1))
@example(zone="Australia/Lord_Howe", window=Window.HOUR, at=local("Australia/Lord_Howe", 2026, 4, 5, 1, 45, fold=1))
@example(zone="Pacific/Apia", window=Window.DAY, at=local("Pacific/Apia", 2011, 12, 31))
@example(zone="Africa/Cairo", window=Window.DAY, at=local("Africa/Cairo", 2024, 4, 26, 1))
def test_windows_tile_time(zone, window, at):
    calendar = Calendar(ZoneInfo(zone))
    starts, ends = calendar.bounds(window, at)
    assert starts <= at < ends
    fresh = Calendar(ZoneInfo(zone))
    assert fresh.bounds(window, ends)[0] == ends
    assert fresh.bounds(window, starts - 1)[1] == starts
    for inside in (starts, (starts + at) // 2, (at + ends) // 2, ends - 1):
        assert Calendar(ZoneInfo(zone)).bounds(window, inside) == (starts, ends)
    assert window is not Window.HOUR or ends - starts <= 3600


@given(
    zone=st.sampled_from(ZONES),
    moments=st.lists(st.integers(utc(2026, 1, 1), utc(2027, 1, 1)), max_size=20),
    window=st.sampled_from(CALENDAR_WINDOWS),
)
def test_what_was_asked_before_changes_nothing(zone, moments, window):
    calendar = Calendar(ZoneInfo(zone))
    for at in moments:
        assert calendar.bounds(window, at) == Calendar(ZoneInfo(zone)).bounds(window, at)
