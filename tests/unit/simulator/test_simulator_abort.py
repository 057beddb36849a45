"""What a stream costs whose client leaves: by provider, and never more than the whole."""

from hypothesis import given
from hypothesis import strategies as st
from simulator_desk import take


@given(st.integers(0, 200), st.integers(0, 60), st.booleans())
def test_a_provider_that_stops_bills_what_it_generated(events: int, reasoning: int, exclude: bool) -> None:
    turn = take(f"[[tokens=50]][[reasoning={reasoning}]]", stream=True, reasoning={"exclude": exclude})
    billed = turn.billed_if_left(events)
    assert billed.completion == turn.generated(events) <= turn.tokens.completion
    assert turn.charge(billed).cost <= turn.charge(turn.tokens).cost


def test_what_was_not_generated_is_not_billed() -> None:
    turn = take("[[tokens=50]]", stream=True)
    assert [turn.billed_if_left(events).completion for events in (1, 3, 50, 51, 53)] == [1, 3, 50, 50, 50]


def test_leaving_before_the_first_token_costs_nothing() -> None:
    turn = take(stream=True)
    assert turn.charge(turn.billed_if_left(0)).total == 0


def test_an_empty_answer_that_was_finished_costs_its_prompt() -> None:
    turn = take("[[tokens=0]]", stream=True)
    assert turn.charge(turn.tokens).cost > 0


def test_a_provider_that_runs_on_bills_everything() -> None:
    turn = take("[[provider=Groq]]", stream=True)
    assert turn.billed_if_left(1) == turn.tokens


def test_without_streaming_everything_is_billed() -> None:
    turn = take()
    assert turn.billed_if_left(0) == turn.tokens
