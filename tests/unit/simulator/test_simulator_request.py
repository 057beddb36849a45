"""What of a request counts: its last text, and prompt tokens that no byte bound underestimates."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faregate.simulator.errors import Refused
from faregate.simulator.request import IMAGE_TOKENS, decode, last_text, prompt_tokens

parts = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, st.text()),
    st.builds(lambda url: {"type": "image_url", "image_url": {"url": url}}, st.text()),
)
messages = st.lists(
    st.builds(
        lambda role, content: {"role": role, "content": content},
        st.sampled_from(["system", "user", "assistant", "tool"]),
        st.one_of(st.none(), st.text(), st.lists(parts)),
    ),
    min_size=1,
)


def _body(**fields: object) -> bytes:
    return json.dumps({"model": "simulator/plain", **fields}, ensure_ascii=False).encode()


def _chat(text: str, **fields: object) -> bytes:
    return _body(messages=[{"role": "user", "content": text}], **fields)


@given(messages, st.booleans())
def test_a_prompt_has_at_most_one_token_per_byte_of_its_json(chat: list[dict[str, object]], dense: bool) -> None:
    text = json.dumps(chat, ensure_ascii=False, separators=(",", ":"))
    assert 0 < prompt_tokens(decode(_body(messages=chat)), dense=dense) <= len(text.encode())


def test_four_bytes_are_a_token_and_a_message_is_four() -> None:
    assert prompt_tokens(decode(_chat("12345678")), dense=False) == 4 + 2
    assert prompt_tokens(decode(_chat("123456789")), dense=False) == 4 + 3
    assert prompt_tokens(decode(_chat("łódź")), dense=True) == 4 + 7


def test_only_what_the_model_reads_counts() -> None:
    alone = decode(_chat("Hello"))
    dressed = decode(_chat("Hello", user="somebody", temperature=0.3, metadata={"a": "b"}))
    assert prompt_tokens(alone, dense=False) == prompt_tokens(dressed, dense=False)


def test_tools_and_their_calls_are_part_of_the_prompt() -> None:
    plain = prompt_tokens(decode(_chat("Hello")), dense=False)
    tools = [{"type": "function", "function": {"name": "get_fare", "parameters": {}}}]
    assert prompt_tokens(decode(_chat("Hello", tools=tools)), dense=False) > plain
    called = [{"role": "user", "content": "Hello", "tool_calls": [{"id": "call_1"}]}]
    assert prompt_tokens(decode(_body(messages=called)), dense=False) > plain


def test_an_image_costs_the_same_however_large() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    request = decode(_body(messages=[{"role": "user", "content": [image]}]))
    assert prompt_tokens(request, dense=False) == 4 + IMAGE_TOKENS


def test_the_last_text_joins_the_parts_of_the_last_message() -> None:
    content = [{"type": "text", "text": "one"}, {"type": "image_url"}, {"type": "text", "text": "two"}, "three"]
    assert last_text([{"content": "first"}, {"content": content}]) == "one\ntwo"
    assert last_text([{"content": "first"}, {"role": "assistant", "tool_calls": []}]) == ""


def test_a_prompt_is_as_good_as_messages() -> None:
    assert last_text(decode(_body(prompt="Hello")).messages or []) == "Hello"


def test_candidates_are_the_model_and_then_the_others_each_once() -> None:
    request = decode(_chat("Hello", models=["simulator/down", "simulator/plain", "openai/gpt-5.2"]))
    assert request.candidates() == ["simulator/plain", "simulator/down", "openai/gpt-5.2"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "Input must have at least 1 token."),
        (b'{"model":"x","messages":[]}', "Input must have at least 1 token."),
        (b'{"model":"x"}', 'Input required: specify "prompt" or "messages"'),
        (b'{"model":7}', "Invalid input"),
        (b"[]", "Invalid input"),
        (_chat("Hello", max_tokens=0), "max_tokens must be at least 1"),
        (_chat("Hello", max_completion_tokens=-5), "max_tokens must be at least 1"),
        (_chat("Hello", provider={"max_price": {"prompt": "cheap"}}), "Invalid input"),
    ],
)
def test_what_is_no_request_is_refused(body: bytes, says: str) -> None:
    with pytest.raises(Refused) as refused:
        decode(body)
    assert refused.value.problem.status == 400
    assert says in json.loads(refused.value.problem.body)["error"]["message"]
