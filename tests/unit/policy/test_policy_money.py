"""Dollars are exact: as strings, as JSON numbers, as nano-dollars on counters, and as people read them."""

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faregate.policy.money import MAX_COUNT, format_usd, nano_of, parse_usd, usd_decimal


@pytest.mark.parametrize(
    ("value", "nano"),
    [
        ("2.50", 2_500_000_000),
        ("0", 0),
        ("900", 900_000_000_000),
        ("0.000000001", 1),
        ("2.50000000000000", 2_500_000_000),
        (3, 3_000_000_000),
        (2.5, 2_500_000_000),
        (0.1, 100_000_000),
        (1e-9, 1),
        (Decimal("1E+2"), 100_000_000_000),
        ("9007199.254740991", MAX_COUNT),
    ],
)
def test_an_amount_is_read_exactly(value, nano):
    assert parse_usd(value) == nano


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("-1", "negative"),
        (-0.5, "negative"),
        ("0.0000000001", "nine decimals"),
        (Decimal("1e-400"), "nine decimals"),
        ("9007199.254740992", "above"),
        (10**100, "number of dollars"),
        ("1e999", "above"),
        (Decimal("1e9999"), "number of dollars"),
        (float("nan"), "number of dollars"),
        (float("inf"), "number of dollars"),
        ("NaN", "number of dollars"),
        ("Infinity", "number of dollars"),
        (True, "number of dollars"),
        (None, "number of dollars"),
        ([], "number of dollars"),
        ("", "number of dollars"),
        (" 1", "number of dollars"),
        ("1_000", "number of dollars"),
        ("1,000", "number of dollars"),
        ("$1", "number of dollars"),
        ("٣", "number of dollars"),
        ("1" + "0" * 70, "number of dollars"),
    ],
)
def test_what_is_not_an_amount_is_refused(value, why):
    with pytest.raises(ValueError, match=why):
        parse_usd(value)


@given(st.integers(0, MAX_COUNT))
def test_an_amount_survives_json_as_a_string(nano):
    assert parse_usd(json.loads(json.dumps(usd_decimal(nano)))) == nano


@given(st.integers(0, 10**15))
def test_an_amount_survives_json_as_a_number(nano):
    # Up to a million dollars a double tells all nano-dollars apart.
    assert parse_usd(json.loads(usd_decimal(nano))) == nano
    assert parse_usd(json.loads(usd_decimal(nano), parse_float=Decimal)) == nano


@pytest.mark.parametrize(
    ("nano", "text"),
    [
        (0, "$0.00"),
        (2_500_000_000, "$2.50"),
        (2_498_700_000, "$2.4987"),
        (1_200_000, "$0.0012"),
        (1, "$0.000000001"),
        (1_234_567_000_000_000, "$1,234,567.00"),
        (-2_500_000_000, "-$2.50"),
    ],
)
def test_people_read_dollars_with_two_decimals_or_as_many_as_needed(nano, text):
    assert format_usd(nano) == text


@pytest.mark.parametrize(
    ("nano", "text"),
    [(0, "0"), (2_500_000_000, "2.5"), (1, "0.000000001"), (900 * 10**9, "900"), (-5 * 10**8, "-0.5")],
)
def test_json_has_plain_decimals(nano, text):
    assert usd_decimal(nano) == text


@given(st.decimals(min_value=0, max_value=1000, allow_nan=False, places=15))
def test_a_cost_is_rounded_up_to_a_nano_dollar(dollars):
    nano = nano_of(dollars)
    assert Decimal(nano - 1) < dollars * 10**9 <= Decimal(nano)
