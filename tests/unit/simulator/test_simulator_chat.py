"""Bodies and events have the shape, the key order and the digits of the wire."""

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulator_desk import take

from faregate.simulator.chat import DONE, error_body, error_events, events, json_body
from faregate.simulator.turn import Turn

USAGE_KEYS = [
    *("prompt_tokens", "completion_tokens", "total_tokens", "cost", "is_byok"),
    *("prompt_tokens_details", "cost_details", "completion_tokens_details"),
]


def _load(text: bytes) -> Any:
    return json.loads(text, parse_float=Decimal)


def _stream(turn: Turn) -> list[bytes]:
    return events(turn, turn.charge(turn.tokens))


def _chunks(turn: Turn) -> list[dict[str, Any]]:
    found = [event for event in _stream(turn) if event != DONE]
    assert all(event.startswith(b"data: {") and event.endswith(b"}\n\n") for event in found)
    return [_load(event.removeprefix(b"data: ")) for event in found]


def _body(turn: Turn) -> dict[str, Any]:
    return _load(json_body(turn, turn.charge(turn.tokens)))


def _text(turn: Turn) -> str:
    return "".join(chunk["choices"][0]["delta"]["content"] for chunk in _chunks(turn))


def test_a_body_has_the_keys_of_the_wire_in_their_order() -> None:
    body = _body(take())
    assert list(body) == [
        *("id", "object", "created", "model", "provider", "system_fingerprint", "service_tier", "choices", "usage")
    ]
    assert list(body["choices"][0]) == ["index", "logprobs", "finish_reason", "native_finish_reason", "message"]
    assert list(body["choices"][0]["message"]) == ["role", "content", "refusal", "reasoning"]
    assert list(body["usage"]) == USAGE_KEYS


def test_a_stream_has_the_keys_of_the_wire_in_their_order() -> None:
    chunks = _chunks(take(stream=True))
    assert list(chunks[0]) == ["id", "object", "created", "model", "provider", "choices"]
    assert list(chunks[-1]) == [
        *("id", "object", "created", "model", "provider", "system_fingerprint", "service_tier", "choices", "usage")
    ]
    assert list(chunks[-1]["usage"]) == USAGE_KEYS


def test_every_delta_has_a_role_and_a_content() -> None:
    for chunk in _chunks(take("[[reasoning=3]][[tokens=3]][[tool]]", stream=True)):
        delta = chunk["choices"][0]["delta"]
        assert (delta["role"], type(delta["content"])) == ("assistant", str)


def test_usage_comes_last_and_repeats_the_finish_reason() -> None:
    turn = take(stream=True, model="openai/gpt-4o-mini")
    *_, before, finish, last = _chunks(turn)
    assert before["choices"][0]["finish_reason"] is None
    for chunk in (finish, last):
        assert chunk["choices"][0]["finish_reason"] == "stop"
        assert chunk["choices"][0]["native_finish_reason"] == "completed"
    assert "usage" not in finish
    assert last["usage"]["completion_tokens"] == turn.tokens.completion
    assert _stream(turn)[-1] == b"data: [DONE]\n\n"


def test_a_stream_has_one_event_for_each_token() -> None:
    turn = take("[[reasoning=7]][[tokens=11]][[tool]]", stream=True)
    assert len(_chunks(turn)) == turn.tokens.completion + 2


@given(st.integers(0, 300), st.integers(0, 120), st.text(max_size=5))
def test_streamed_or_not_the_answer_is_the_same(tokens: int, reasoning: int, noise: str) -> None:
    text = f"{noise.replace('[', '')} [[tokens={tokens}]][[reasoning={reasoning}]]"
    turn = take(text, stream=True)
    message = _body(turn)["choices"][0]["message"]
    deltas = [chunk["choices"][0]["delta"] for chunk in _chunks(turn)]
    assert message["content"] == "".join(delta["content"] for delta in deltas)
    assert (message["reasoning"] or "") == "".join(delta.get("reasoning", "") for delta in deltas)
    assert _body(turn)["usage"] == _chunks(turn)[-1]["usage"]


def test_an_answer_is_sentences() -> None:
    text = _body(take("[[tokens=40]]"))["choices"][0]["message"]["content"]
    assert len(text.split()) == 40
    assert text[0].isupper()


def test_reasoning_is_given_as_text_and_as_details() -> None:
    message = _body(take("[[reasoning=5]]"))["choices"][0]["message"]
    assert message["reasoning_details"][0]["text"] == message["reasoning"] != ""


def test_excluded_reasoning_is_counted_and_not_shown() -> None:
    turn = take("[[reasoning=5]]", stream=True, reasoning={"exclude": True})
    assert b'"reasoning"' not in b"".join(_stream(turn))
    assert _body(turn)["choices"][0]["message"]["reasoning"] is None
    assert _chunks(turn)[-1]["usage"]["completion_tokens_details"]["reasoning_tokens"] == 5


def test_a_tool_call_comes_in_pieces_that_make_its_arguments() -> None:
    turn = take("[[tool]]", stream=True)
    calls = [
        chunk["choices"][0]["delta"]["tool_calls"][0]
        for chunk in _chunks(turn)
        if "tool_calls" in chunk["choices"][0]["delta"]
    ]
    assert list(calls[0]) == ["index", "id", "type", "function"]
    assert calls[0]["function"] == {"name": "get_weather", "arguments": ""}
    assert json.loads("".join(call["function"]["arguments"] for call in calls)) == {"city": "Paris"}
    whole = _body(turn)["choices"][0]["message"]["tool_calls"][0]
    assert (whole["id"], whole["function"]["arguments"]) == (calls[0]["id"], '{"city":"Paris"}')
    assert _chunks(turn)[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_usage_has_the_very_digits_of_the_bill() -> None:
    turn = take("[[tokens=6]]", model="openai/gpt-4.1-nano")
    charge = turn.charge(turn.tokens)
    usage = _body(turn)["usage"]
    assert usage["cost"] == charge.cost
    assert usage["cost_details"]["upstream_inference_cost"] == charge.upstream
    assert charge.cost == charge.upstream * Decimal("0.99")


def test_a_cost_below_a_millionth_has_an_exponent() -> None:
    turn = take("[[cost=tiny]]")
    assert b'"cost":1.2e-7,' in json_body(turn, turn.charge(turn.tokens))


@pytest.mark.parametrize(
    ("marker", "written"), [("null", b'"cost":null,'), ("negative", b'"cost":-0.'), ("absurd", b'"cost":1e300,')]
)
def test_a_cost_can_be_nonsense_while_the_bill_is_not(marker: str, written: bytes) -> None:
    turn = take(f"Hello [[cost={marker}]]")
    assert written in json_body(turn, turn.charge(turn.tokens))
    assert turn.charge(turn.tokens).cost > 0


def test_a_negative_cost_is_negative_even_for_a_free_model() -> None:
    turn = take("[[cost=negative]]", model="liquid/lfm-2.5-2.6b:free")
    assert _body(turn)["usage"]["cost"] == -1


def test_a_cost_can_be_missing() -> None:
    assert "cost" not in _body(take("[[cost=missing]]"))["usage"]


def test_usage_can_be_missing() -> None:
    turn = take("[[no-usage]]", stream=True)
    assert b'"usage"' not in b"".join(_stream(turn)) + json_body(turn, turn.charge(turn.tokens))
    assert _stream(turn)[-1] == DONE


def test_usage_can_come_with_the_finish() -> None:
    *_, before, last = _chunks(take("[[usage-on-finish]]", stream=True))
    assert before["choices"][0]["finish_reason"] is None
    assert (last["choices"][0]["finish_reason"], "usage" in last) == ("stop", True)


def test_usage_can_come_without_choices() -> None:
    last = _chunks(take("[[empty-choices]]", stream=True))[-1]
    assert (last["choices"], "usage" in last) == ([], True)


def test_usage_can_come_without_a_finish_reason() -> None:
    *_, finish, last = _chunks(take("[[finish-null]]", stream=True))
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert last["choices"][0]["finish_reason"] is None


def test_reasoning_can_exceed_the_completion_in_the_report() -> None:
    usage = _body(take("[[tokens=5]][[reasoning=5]][[reasoning-excess=50]]"))["usage"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 55 > usage["completion_tokens"]


def test_the_reply_can_name_the_model_by_its_dated_name() -> None:
    assert _body(take("[[permaslug]]"))["model"] == "simulator/plain-20260101"


@pytest.mark.parametrize("marker", ["event", "event-escaped"])
def test_a_chunk_can_ask_the_browser_to_run_code(marker: str) -> None:
    turn = take(f"[[{marker}]]", stream=True)
    first, second, *_ = _chunks(turn)
    assert first["event"]["type"] == "execute"
    assert first["choices"][0]["delta"]["content"]
    assert "event" not in second
    assert _body(turn)["event"]["type"] == "execute"
    assert (b'"event":' in _stream(turn)[0]) is (marker == "event")


def test_a_delta_can_be_huge_and_counts_as_one_token() -> None:
    turn = take("[[big=100000]][[tokens=3]]", stream=True)
    assert max(len(event) for event in _stream(turn)) > 100_000
    assert turn.tokens.completion == 3
    assert _text(turn) == _body(turn)["choices"][0]["message"]["content"]


def test_a_stream_can_end_without_done() -> None:
    assert DONE not in _stream(take("[[done-missing]]", stream=True))


def test_lines_can_end_with_cr_lf() -> None:
    lines = b"".join(_stream(take("[[crlf]]", stream=True))).split(b"\r\n")
    assert not any(b"\n" in line for line in lines)
    assert lines[-3:] == [b"data: [DONE]", b"", b""]


def test_an_error_in_the_stream_ends_it() -> None:
    turn = take(stream=True)
    *before, last = error_events(turn, turn.charge(turn.tokens), 5)
    assert before == _stream(turn)[:5]
    chunk = _load(last.removeprefix(b"data: "))
    assert list(chunk) == ["id", "object", "created", "model", "provider", "error", "choices"]
    assert chunk["error"]["code"] == 502
    assert chunk["choices"] == [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}]


def test_the_code_of_that_error_can_be_a_string_and_done_can_follow() -> None:
    turn = take("[[error-code-string]][[error-done]]", stream=True)
    event, done = error_events(turn, turn.charge(turn.tokens), 0)
    assert (_load(event.removeprefix(b"data: "))["error"]["code"], done) == ("server_error", DONE)


def test_a_body_can_be_an_error_alone() -> None:
    assert list(_load(error_body(take()))) == ["error"]
