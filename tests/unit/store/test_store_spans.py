"""Any whole hours are covered, each once, and by few spans."""

from hypothesis import given
from hypothesis import strategies as st

from faregate.store.spans import DAY, HOUR, SPANS, Stretch, stretches

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


@given(HOURS, st.integers(0, 100_000))
def test_however_long_a_time_is_few_spans_make_it_up(since, length):
    parts = list(stretches(since * HOUR, (since + length) * HOUR))
    assert len(parts) <= 8
    assert sum(len(part.starts()) for part in parts if part.hours < SPANS[-1]) <= 2 * (23 + 7 + 7)


def test_hours_of_two_days_are_two_stretches():
    assert list(stretches(MIDNIGHT - HOUR, MIDNIGHT + 2 * HOUR)) == [
        Stretch(1, MIDNIGHT - HOUR, MIDNIGHT),
        Stretch(1, MIDNIGHT, MIDNIGHT + 2 * HOUR),
    ]


def test_a_year_is_made_of_a_few_long_spans():
    assert [(part.hours, len(part.starts())) for part in stretches(MIDNIGHT, MIDNIGHT + 365 * DAY)] == [
        (24, 7),
        (8 * 24, 3),
        (64 * 24, 5),
        (8 * 24, 1),
        (24, 6),
    ]
