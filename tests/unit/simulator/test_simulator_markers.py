"""Markers are read from the text, and a mistake in one is told instead of ignored."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faregate.simulator.markers import NONE, TABLE, MarkerError, Markers, parse

ALL = [marker for _, group in TABLE for marker in group]


def test_text_without_markers_asks_for_nothing() -> None:
    assert parse("How do I get to the harbour?") is NONE


@pytest.mark.parametrize("text", ["if [[ -f fare ]]; then", "[[1, 2], [3, 4]]", "a[[0]]", "[[Harbour]]", "[["])
def test_double_brackets_that_look_like_no_marker_are_left_alone(text: str) -> None:
    assert parse(text) == NONE


def test_several_markers_combine() -> None:
    found = parse("Hello [[tokens=500]] and [[pace=0.02]], [[provider=Google AI Studio]] [[discount=0.01]][[tool]]")
    assert found == Markers(tokens=500, pace=0.02, provider="Google AI Studio", discount=Decimal("0.01"), tool=True)


def test_a_name_with_a_dash_is_a_field_with_an_underscore() -> None:
    assert parse("[[error-after=5]][[no-usage]]") == Markers(error_after=5, no_usage=True)


def test_a_marker_can_have_a_meaning_without_a_value() -> None:
    assert parse("[[stall]][[whitespace]][[fallback]]") == Markers(stall=0, whitespace=3, fallback=1)
    assert parse("[[stall=5]][[fallback=2]]") == Markers(stall=5, fallback=2)


def test_the_text_has_the_last_word_over_the_model() -> None:
    assert parse("[[pace=0]]", parse("[[pace=0.05]][[tokens=3]]")) == Markers(pace=0.0, tokens=3)


@pytest.mark.parametrize("marker", ALL, ids=lambda marker: marker.name)
def test_every_example_is_understood_and_changes_something(marker) -> None:
    assert parse(f"[[{marker.example}]]") != NONE


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[token=5]]", r"no marker \[\[token\]\]"),
        ("[[tokens=many]]", "needs a whole number, such as"),
        ("[[tokens]]", "needs a whole number"),
        ("[[tokens=-1]]", "needs a whole number"),
        ("[[tokens=²]]", "needs a whole number"),
        ("[[split=0]]", "above zero"),
        ("[[pace=fast]]", "needs a number"),
        ("[[pace=nan]]", "not negative"),
        ("[[wait=-1]]", "not negative"),
        ("[[discount=2]]", "between 0 and 1"),
        ("[[cost=free]]", "one of null, missing"),
        ("[[error=418]]", "one of 400, 401"),
        ("[[provider=]]", "needs a name"),
        ("[[tool=hammer]]", "takes no value"),
    ],
)
def test_a_mistake_is_told_with_what_would_be_right(text: str, says: str) -> None:
    with pytest.raises(MarkerError, match=says):
        parse(text)


@given(st.text())
def test_any_text_is_read_or_refused_but_never_breaks(text: str) -> None:
    try:
        assert isinstance(parse(f"[[{text}]] [[tokens={text}]]"), Markers)
    except MarkerError as error:
        assert "[[" in str(error)  # noqa: PT017 - both outcomes are right, and each is checked
