"""What goes into a column comes out of it, on both dialects."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql, sqlite

from faregate.store.types import Instant, Money, Names, Words

DIALECTS = [sqlite.dialect(), postgresql.dialect()]
both = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
pico_dollars = st.integers(0, 9 * 10**18)
microseconds = st.integers(0, 4_000_000_000 * 10**6)


def through(column, value, dialect):
    return column.process_result_value(column.process_bind_param(value, dialect), dialect)


@both
@given(moment=microseconds)
def test_a_time_keeps_its_microseconds(dialect, moment):
    assert through(Instant(), moment / 1_000_000, dialect) == moment / 1_000_000


@both
@given(second=st.integers(1, 4_000_000_000), short=st.floats(1e-7, 5e-7))
def test_a_time_is_never_rounded_up_into_the_next_window(dialect, second, short):
    before = second - short
    if before < second:
        assert through(Instant(), before, dialect) < second


def test_postgresql_gets_a_time_with_its_zone():
    assert Instant().process_bind_param(0.000001, DIALECTS[1]) == datetime(1970, 1, 1, 0, 0, 0, 1, tzinfo=UTC)
    assert Instant().load_dialect_impl(DIALECTS[1]).timezone
    assert str(Money().load_dialect_impl(DIALECTS[1])) == "NUMERIC(24, 12)"


@both
@given(pico=pico_dollars)
def test_money_is_exact_to_a_pico_dollar(dialect, pico):
    amount = Decimal(pico).scaleb(-12)
    assert through(Money(), amount, dialect) == amount


@both
def test_money_with_more_places_is_rounded_like_postgresql_does(dialect):
    assert through(Money(), Decimal("0.0000000000015"), dialect) == Decimal("0.000000000002")


@given(st.lists(pico_dollars, max_size=50))
def test_sums_of_money_on_sqlite_are_sums_of_integers(amounts):
    stored = [Money().process_bind_param(Decimal(amount).scaleb(-12), DIALECTS[0]) for amount in amounts]
    assert sum(stored) == sum(amounts)
    assert all(type(value) is int for value in stored)


@both
@given(names=st.lists(st.text(st.characters(codec=None))).map(tuple))
def test_a_list_of_any_strings_keeps_its_order_and_content(dialect, names):
    stored = Names().process_bind_param(names, dialect)
    assert stored.isascii()
    assert Names().process_result_value(stored, dialect) == names


@both
@given(text=st.text(st.characters(codec=None)))
@example(text="a\0b\ud83d\udfff")
def test_text_can_always_be_stored(dialect, text):
    stored = Words().process_bind_param(text, dialect)
    assert stored.encode("utf-8").decode("utf-8") == stored
    assert "\0" not in stored
    assert len(stored) == len(text)


@both
def test_only_what_cannot_be_stored_is_replaced(dialect):
    stored = Words().process_bind_param("Zoë\0 山田 \U0001f600 \ud83d!", dialect)
    assert stored == "Zoë\ufffd 山田 \U0001f600 \ufffd!"


@both
@pytest.mark.parametrize("column", [Instant(), Money(), Names()], ids=lambda column: type(column).__name__)
def test_nothing_stays_nothing(dialect, column):
    assert through(column, None, dialect) is None
