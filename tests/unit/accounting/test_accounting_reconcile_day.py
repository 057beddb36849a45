"""A day by our records and by OpenRouter's: what is the same thing is one row, and no cent is lost on the way."""

from datetime import UTC, date, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faregate.accounting.activity import Activity
from faregate.accounting.reconcile_day import NotClosed, agree, bounds, check_closed, compare, day_before, total
from faregate.store.reconciliations import DayRow, DaySum

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp()
SLUG, DATED = "openai/gpt-4o", "openai/gpt-4o-2024-08-06"


def ours(served=SLUG, *, model=SLUG, models=(SLUG, DATED), provider="OpenAI", requests=1, cost="0.5"):
    return DaySum(served, model, models, provider, requests, Decimal(cost))


def theirs(model=SLUG, dated=DATED, *, provider="OpenAI", requests=1, cost="0.5"):
    return Activity(model, dated, provider, requests, Decimal(cost))


def names(rows):
    return [(row.model, row.provider) for row in rows]


def test_equal_days_have_no_difference():
    (row,) = compare([ours()], [theirs()])
    assert row == DayRow(SLUG, "OpenAI", 1, Decimal("0.5"), 1, Decimal("0.5"))
    assert row.difference == 0


def test_a_missing_record_is_a_difference_below_zero_and_a_missing_bill_one_above():
    assert [row.difference for row in compare([], [theirs()])] == [Decimal("-0.5")]
    assert [row.difference for row in compare([ours()], [])] == [Decimal("0.5")]


def test_a_day_on_which_nothing_was_asked_has_no_rows():
    assert compare([], []) == []
    assert agree([], Decimal(0))


def test_endpoints_of_one_provider_are_one_row():
    (row,) = compare([ours(requests=2, cost="1")], [theirs(), theirs()])
    assert (row.their_requests, row.difference) == (2, 0)


@pytest.mark.parametrize(
    "record",
    [
        ours(DATED),
        ours("openai/gpt-4o:nitro", models=("openai/gpt-4o:nitro", SLUG)),
        ours("openai/gpt-4o:extended", models=("openai/gpt-4o:extended",)),
        ours("openai/gpt-4o-2024-08-06:nitro", models=()),
        ours("gpt-4o-somewhere"),
        ours(None),
        ours(None, model="~openai/gpt-latest", models=("~openai/gpt-latest", SLUG)),
        ours(provider="OPENAI"),
        ours(provider=None),
        ours(provider=""),
    ],
    ids=lambda record: f"{record.served_model} of {record.provider}",
)
def test_all_names_of_a_model_are_one_row(record: DaySum):
    assert names(compare([record], [theirs(), theirs("openai/o3", "openai/o3-2025", provider="Azure")])) == [
        ("openai/gpt-4o", "OpenAI"),
        ("openai/o3", "Azure"),
    ]


def test_the_free_variant_is_not_the_one_that_is_paid_for_though_they_share_a_dated_name():
    sold = [theirs("x/y:free", "x/y-1", cost="0"), theirs("x/y", "x/y-1", cost="0.25")]
    free = ours("x/y:free", models=("x/y:free", "x/y-1"), cost="0")
    paid = ours("x/y", models=("x/y", "x/y-1"), cost="0.25")
    dated_free = ours("x/y-1", models=("x/y:free", "x/y-1"), cost="0")
    dated_paid = ours("x/y-1", models=("x/y-1",), cost="0.25")
    for records in ([free, paid], [dated_free, dated_paid]):
        for bills in (sold, sold[::-1]):
            assert [row.difference for row in compare(records, bills)] == [0, 0]


def test_a_record_that_may_be_of_either_of_two_models_is_of_neither():
    either = ours(None, model="a/b", models=("a/b-1", "c/d-1"))
    sold = [theirs("a/b2", "a/b-1"), theirs("c/d2", "c/d-1")]
    assert names(compare([either], sold)) == [("a/b", "OpenAI"), ("a/b2", "OpenAI"), ("c/d2", "OpenAI")]


def test_another_model_that_answered_is_not_taken_for_the_one_that_was_asked_for():
    fallback = ours("c/d", model="a/b", models=("c/d",))
    assert names(compare([fallback], [theirs("a/b", "a/b-1"), theirs("c/d", "c/d-1")])) == [
        ("a/b", "OpenAI"),
        ("c/d", "OpenAI"),
    ]


def test_a_record_without_a_provider_is_of_none_where_several_answered():
    sold = [theirs(provider="OpenAI"), theirs(provider="Azure")]
    assert names(compare([ours(provider=None)], sold)) == [(SLUG, ""), (SLUG, "Azure"), (SLUG, "OpenAI")]


def test_what_is_behind_the_twelfth_place_is_no_difference():
    (row,) = compare([ours(cost="0.3")], [theirs(cost="0.1"), theirs(cost="0.20000000000000004")])
    assert agree([row], Decimal(0))


def test_rows_that_make_up_for_each_other_are_no_agreement():
    rows = compare([ours(cost="1")], [theirs("a/b", "a/b")])
    assert total(rows).difference == Decimal("0.5")
    rows = compare([ours(cost="0.5")], [theirs("a/b", "a/b")])
    assert total(rows).difference == 0
    assert not agree(rows, Decimal("0.01"))


def test_small_differences_that_add_up_are_no_agreement():
    rows = [DayRow(f"m/{number}", "p", 1, Decimal("0.01"), 1, Decimal(0)) for number in range(2)]
    assert agree(rows[:1], Decimal("0.01"))
    assert not agree(rows, Decimal("0.01"))


models = st.sampled_from(["a/b", "a/b:free", "a/b-1", "c/d", "c/d-1", "e/f"])
providers = st.sampled_from(["P", "p", "Q"])
money = st.decimals(min_value=0, max_value=1000, places=12)
our_sums = st.builds(
    DaySum,
    st.none() | models,
    models,
    st.lists(models, unique=True).map(tuple),
    st.none() | providers,
    st.integers(1, 9),
    money,
)
their_sums = st.builds(Activity, models, models, providers, st.integers(1, 9), money)


@given(st.lists(our_sums), st.lists(their_sums))
def test_every_request_and_every_cent_of_both_sides_is_in_exactly_one_row(our_day, their_day):
    rows = compare(our_day, their_day)
    assert len({(row.model, row.provider) for row in rows}) == len(rows)
    sums = total(rows)
    assert (sums.our_requests, sums.our_cost) == (sum(o.requests for o in our_day), sum(o.cost for o in our_day))
    assert (sums.their_requests, sums.their_cost) == (
        sum(t.requests for t in their_day),
        sum(t.cost for t in their_day),
    )


def test_a_day_is_from_midnight_to_midnight_in_utc():
    begin, end = bounds(date(2026, 11, 22))
    assert (datetime.fromtimestamp(begin, UTC).isoformat(), end - begin) == ("2026-11-22T00:00:00+00:00", 86_400)


def test_the_last_thirty_completed_days_can_be_compared():
    assert day_before(NOON) == date(2026, 11, 22)
    check_closed(date(2026, 11, 22), NOON)
    check_closed(date(2026, 10, 24), NOON)


@pytest.mark.parametrize(
    ("day", "sentence"),
    [
        (date(2026, 11, 23), "2026-11-23 has not ended yet in UTC"),
        (date(2027, 1, 1), "2027-01-01 has not ended yet in UTC"),
        (date(2026, 10, 23), "2026-10-23 is too long ago.*now from 2026-10-24 on"),
    ],
)
def test_other_days_cannot(day: date, sentence: str):
    with pytest.raises(NotClosed, match=sentence):
        check_closed(day, NOON)
