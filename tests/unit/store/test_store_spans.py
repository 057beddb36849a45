"""Any whole hours are covered, each once, and by few spans."""

from hypothesis import given
from hypothesis import strategies as st

from faregate.store.spans import DAY, HOUR, SPANS, Stretch, fewest, stretches

HOURS = st.integers(0, 600_000)
MIDNIGHT = 1_799_971_200.0


@given(HOURS, st.integers(-10, 100_000), st.sampled_from([SPANS, (1, 24), (1,)]))
def test_stretches_follow_each_other_and_each_is_of_whole_spans(since, length, spans):
    at = since * HOUR
    until = (since + length) * HOUR
    for stretch in stretches(at, until, spans):
        assert stretch.since == at
        assert stretch.hours in spans
        assert stretch.since % (stretch.hours * HOUR) == stretch.until % (stretch.hours * HOUR) == 0
        starts = stretch.starts()
        assert (starts[0], starts[-1] + stretch.hours * HOUR) == (stretch.since, stretch.until)
        at = stretch.until
    assert at == max(until, since * HOUR)


def test_hours_of_two_days_are_two_stretches():
    assert list(stretches(MIDNIGHT - HOUR, MIDNIGHT + 2 * HOUR, (1, 24))) == [
        Stretch(1, MIDNIGHT - HOUR, MIDNIGHT),
        Stretch(1, MIDNIGHT, MIDNIGHT + 2 * HOUR),
    ]


def test_a_year_is_made_of_a_few_long_spans():
    filled = (MIDNIGHT - 1000 * DAY, MIDNIGHT + 1000 * DAY)
    assert [(part.hours, part.sign, len(part.starts())) for part in fewest(MIDNIGHT, MIDNIGHT + 365 * DAY, filled)] == [
        (24, -1, 1),
        (24, -1, 2),
        (8 * 24, 1, 4),
        (8 * 24, 1, 2),
        (64 * 24, 1, 5),
    ]


@given(HOURS, st.integers(0, 100_000), HOURS, st.integers(1, 100_000))
def test_what_is_added_and_taken_away_is_each_hour_of_the_time_once(since, length, first, filled):
    at, until = since * HOUR, (since + length) * HOUR
    begin, end = first * HOUR, (first + filled) * HOUR
    parts = fewest(at, until, (begin, end))
    for part in parts:
        assert part.since < part.until
        assert part.since % (part.hours * HOUR) == part.until % (part.hours * HOUR) == 0
    # How often an hour is counted changes at these moments alone.
    moments = {begin, at, until, *(part.since for part in parts), *(part.until for part in parts)}
    for moment in moments:
        if begin <= moment < end:
            counted = sum(part.sign for part in parts if part.since <= moment < part.until)
            assert counted == (at <= moment < until)


@given(HOURS, st.integers(0, 100_000))
def test_an_edge_takes_at_most_half_of_each_kind_of_spans(since, length):
    at, until = since * HOUR, (since + length) * HOUR
    parts = fewest(at, until, (0, until + 1000 * DAY))
    assert sum(len(part.starts()) for part in parts if part.hours < SPANS[-1]) <= 2 * (12 + 4 + 4)


def test_where_there_are_no_sums_nothing_is_added_or_taken_away():
    day = MIDNIGHT - MIDNIGHT % (64 * DAY) + 23 * DAY
    now = day + 17 * HOUR
    filled = (now - 400 * DAY, now)
    assert fewest(day, now, filled) == (Stretch(24, day, day + DAY),)
    [ever] = fewest(0, now + 400 * DAY, filled)
    assert (ever.hours, ever.sign, len(ever.starts())) == (64 * 24, 1, 7)
    assert fewest(0, now - 500 * DAY, filled) == fewest(now, now + DAY, filled) == ()
