"""Who answers, how long, and what is refused before any provider is asked."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulator_desk import ANSWER_TOKENS, take

from faregate.simulator.catalogue import Catalogue
from faregate.simulator.errors import ERROR_NAMES, Refused
from faregate.simulator.models import MODELS
from faregate.simulator.routing import Router


def _refusal(text: str = "Hello", **fields: object) -> tuple[int, dict[str, object]]:
    with pytest.raises(Refused) as refused:
        take(text, **fields)
    return refused.value.problem.status, json.loads(refused.value.problem.body)["error"]


def test_an_ordinary_answer_has_the_default_length_and_stops() -> None:
    turn = take()
    assert (turn.tokens.completion, turn.finish, turn.native_finish) == (ANSWER_TOKENS, "stop", "stop")


def test_the_same_request_gets_the_same_answer() -> None:
    assert take("Which line?") == take("Which line?")


def test_another_seed_says_something_else_and_costs_the_same() -> None:
    other = Router(Catalogue(MODELS), answer_tokens=ANSWER_TOKENS, seed=-2)
    mine, theirs = take("Which line?"), take("Which line?", router=other)
    assert mine.offset != theirs.offset
    assert mine.charge(mine.tokens) == theirs.charge(theirs.tokens)


@given(
    st.sampled_from([model.id for model in MODELS]),
    st.integers(1, 300),
    st.one_of(st.none(), st.integers(1, 300)),
    st.integers(0, 400),
    st.integers(0, 400),
    st.booleans(),
)
def test_no_answer_exceeds_the_cap(
    model: str, cap: int, other: int | None, tokens: int, reasoning: int, tool: bool
) -> None:
    text = f"[[tokens={tokens}]] [[reasoning={reasoning}]]" + " [[tool]]" * tool
    turn = take(text, model=model, max_tokens=cap, max_completion_tokens=other)
    limit = min(cap, other or cap)
    assert turn.tokens.completion <= limit
    assert turn.tokens.reasoning <= turn.tokens.completion
    if tokens + reasoning > limit:
        assert turn.finish == "length"


def test_without_a_cap_the_model_has_one() -> None:
    turn = take("[[tokens=500]]", model="simulator/short")
    assert (turn.tokens.completion, turn.finish) == (64, "length")


def test_without_either_the_context_has_one() -> None:
    turn = take("[[tokens=900000]]", model="openai/gpt-oss-20b")
    assert turn.tokens.prompt + turn.tokens.completion == 131_072


def test_a_prompt_beyond_the_context_is_refused() -> None:
    status, error = _refusal("x" * 20_000, model="simulator/short")
    assert status == 400
    assert "maximum context length is 4096 tokens" in str(error["message"])


@pytest.mark.parametrize("fields", [{"model": "openai/nothing"}, {"models": ["openai/nothing"]}])
def test_every_model_asked_for_must_exist(fields: dict[str, object]) -> None:
    assert _refusal(**fields) == (400, {"message": "openai/nothing is not a valid model ID", "code": 400})


def test_some_model_must_be_asked_for() -> None:
    assert _refusal(model=None)[0] == 400


def test_the_next_model_answers_for_one_that_is_down() -> None:
    turn = take(model="simulator/down", models=["anthropic/claude-haiku-4.5"])
    assert turn.failure is None
    assert (turn.requested, turn.shown_model) == ("simulator/down", "anthropic/claude-haiku-4.5")
    assert (turn.provider, turn.native_finish) == ("Anthropic", "end_turn")


def test_a_marker_makes_the_first_models_fail() -> None:
    others = ["openai/gpt-4o-mini", "openai/gpt-4.1-nano"]
    assert take("[[fallback]]", models=others).shown_model == "openai/gpt-4o-mini"
    assert take("[[fallback=2]]", models=others).shown_model == "openai/gpt-4.1-nano"


def test_when_nobody_is_left_there_is_an_error() -> None:
    for turn in (take("[[fallback]]"), take(model="simulator/down")):
        assert turn.failure is not None
        assert turn.failure.status == 503


def test_a_model_can_have_a_behaviour_and_the_text_can_change_it() -> None:
    assert take(model="simulator/slow").markers.pace == 0.05
    assert take("[[pace=0]]", model="simulator/slow").markers.pace == 0


def test_a_ceiling_on_the_price_refuses_what_is_dearer() -> None:
    ceiling = {"max_price": {"prompt": 1, "completion": "4"}}
    assert take(provider=ceiling).failure is None
    status, error = _refusal("[[dearer=2]]", provider=ceiling)
    assert (status, error["metadata"]) == (404, {"failed_routing_step": "Filter by Max Price"})


def test_a_ceiling_counts_for_the_price_of_a_long_prompt() -> None:
    ceiling = {"max_price": {"prompt": 1, "completion": 4}}
    assert take(model="simulator/tiered", provider=ceiling).failure is None
    assert _refusal("x" * 8_000, model="simulator/tiered", provider=ceiling)[0] == 404


def test_some_models_reason_unless_told_not_to() -> None:
    thinker = "simulator/thinker"
    usual = take(model=thinker).tokens.reasoning
    assert usual > 0
    assert take(model=thinker, reasoning={"effort": "high"}).tokens.reasoning > usual
    assert take(model=thinker, reasoning={"max_tokens": 5}).tokens.reasoning == 5
    assert take(model=thinker, reasoning={"enabled": False}).tokens.reasoning == 0
    assert take(model="simulator/plain", reasoning={"effort": "high"}).tokens.reasoning == 0
    assert _refusal(model="openai/o3-pro", reasoning={"effort": "none"})[0] == 400


def test_hidden_reasoning_is_billed_all_the_same() -> None:
    shown = take(model="simulator/thinker")
    hidden = take(model="simulator/thinker", reasoning={"exclude": True})
    assert hidden.tokens == shown.tokens
    assert not hidden.show_reasoning
    assert (hidden.generated(0), hidden.generated(1), shown.generated(1)) == (0, shown.tokens.reasoning + 1, 1)


def test_cached_tokens_are_part_of_the_prompt() -> None:
    turn = take("[[cached=1000]]")
    assert turn.tokens.cached == turn.tokens.prompt
    both = take("[[cached=2]][[cache-write=3]]", model="simulator/tiered").tokens
    assert (both.cached, both.written) == (2, 3)
    assert take("[[cache-write=3]]", model="simulator/plain").tokens.written == 0


def test_a_tool_call_uses_the_first_tool_offered() -> None:
    schema = {"properties": {"zone": {"type": "integer"}, "day": {"type": "string"}}, "required": ["zone", "day"]}
    function = {"name": "get_fare", "parameters": schema}
    turn = take("[[tool]]", tools=[{"type": "function", "function": function}])
    assert turn.finish == "tool_calls"
    assert turn.tool is not None
    assert turn.tool.name == "get_fare"
    assert json.loads("".join(turn.tool.arguments)) == {"zone": 1, "day": "Paris"}
    assert turn.tokens.completion == turn.tool.tokens


@pytest.mark.parametrize("function", [{"name": "f"}, {"name": "f", "parameters": {"required": "all"}}])
def test_a_tool_without_a_schema_is_called_without_arguments(function: dict[str, object]) -> None:
    turn = take("[[tool]]", tools=[{"type": "function", "function": function}])
    assert turn.tool is not None
    assert turn.tool.arguments == ("{}",)


def test_a_tool_call_that_does_not_fit_is_cut_short() -> None:
    turn = take("[[tool]]", max_tokens=1)
    assert turn.tool is not None
    assert (turn.tool.arguments, turn.finish) == ((), "length")
    gone = take("[[tool]][[tokens=5]]", max_tokens=5)
    assert (gone.tool, gone.finish, gone.tokens.completion) == (None, "length", 5)


def test_a_mistaken_marker_is_refused() -> None:
    status, error = _refusal("[[tokns=5]]")
    assert status == 400
    assert "[[tokns]]" in str(error["message"])


@pytest.mark.parametrize("name", ERROR_NAMES)
def test_an_error_takes_the_place_of_the_answer(name: str) -> None:
    failure = take(f"[[error={name}]]").failure
    assert failure is not None
    assert str(failure.status) == name[:3]
    if name in ("502-html", "524"):
        assert failure.body.startswith(b"<!DOCTYPE html>")
    else:
        body = json.loads(failure.body)
        assert list(body["error"])[:2] == ["message", "code"]
        assert body["error"]["code"] == failure.status
        assert name == "403-key" or body["user_id"].startswith("user_")


@pytest.mark.parametrize(
    ("name", "seconds"),
    [("402-in-flight", b"2"), ("429-upstream", b"1"), ("503", b"5"), ("429-upstream-bare", None), ("402", None)],
)
def test_only_some_errors_say_when_to_come_back(name: str, seconds: bytes | None) -> None:
    failure = take(f"[[error={name}]]").failure
    assert failure is not None
    assert dict(failure.headers).get(b"retry-after") == seconds


def test_moderation_quotes_the_prompt_with_its_middle_left_out() -> None:
    failure = take("secret " * 50 + "[[error=403-moderation]]").failure
    assert failure is not None
    flagged = json.loads(failure.body)["error"]["metadata"]["flagged_input"]
    assert len(flagged) == 100
    assert flagged.startswith("secret secret")
