"""A chat request as it comes in and as it leaves."""

import json
from decimal import Decimal

import pytest

from faregate.gateway.errors import ApiError
from faregate.gateway.request import outgoing, parse_chat
from faregate.pricing.bound import Ceiling

BODY = {"model": "openai/gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}


def sent(body: dict[str, object], cap: int = 100) -> dict[str, object]:
    """The body that leaves for `body`."""
    result: dict[str, object] = json.loads(outgoing(parse_chat(json.dumps(body).encode()), cap=cap, user="fg-x"))
    return result


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b'"text"', None),
        (b'{"model":"a","messages":[{"role":"user","content":NaN}]}', None),
        (b'{"model":"a","messages":[{"role":"user","content":"\xff"}]}', None),
        (b'{"messages":[{}]}', "model"),
        (b'{"model":"","messages":[{}]}', "model"),
        (b'{"model":7,"messages":[{}]}', "model"),
        (b'{"model":"a"}', "messages"),
        (b'{"model":"a","messages":[ ]}', "messages"),
        (b'{"model":"a","messages":"hi"}', "messages"),
        (b'{"model":"a","messages":[{}],"stream":"yes"}', "stream"),
        (b'{"model":"a","messages":[{}],"max_tokens":0}', "max_tokens"),
        (b'{"model":"a","messages":[{}],"max_tokens":true}', "max_tokens"),
        (b'{"model":"a","messages":[{}],"max_completion_tokens":-5}', "max_tokens"),
        (b'{"model":"a","messages":[{}],"models":"b"}', "models"),
        (b'{"model":"a","messages":[{}],"models":[""]}', "models"),
        (b'{"model":"a","messages":[{}],"stream_options":[]}', "stream_options"),
        (b'{"model":"a","messages":[{}],"n":2}', "n"),
        (b'{"model":"a","messages":[{}],"prompt":"b"}', "prompt"),
        (b'{"model":"a","messages":[{}],"provider":"b"}', "provider"),
        (b'{"model":"' + b"a" * 257 + b'","messages":[{}]}', "model"),
        (b'{"model":"a","messages":[{}],"models":["' + b"a" * 257 + b'"]}', "models"),
        (b'{"model":"a","messages":[{}],"models":["b"' + b',"b"' * 16 + b"]}", "models"),
        (b'{"model":"a","messages":[{}],"models":["b"' + b',"b"' * 1000 + b"]}", "models"),
        (b'{"model":"a","messages":[{}],"fallbacks":[{"model":"b"}' + b',{"model":"b"}' * 1000 + b"]}", "fallbacks"),
    ],
)
def test_a_body_that_cannot_be_served_is_refused_with_a_sentence(body: bytes, param: str | None) -> None:
    with pytest.raises(ApiError) as refused:
        parse_chat(body)
    assert refused.value.status == 400
    assert refused.value.param == param
    assert refused.value.message.endswith(".")


def test_what_is_not_ours_to_change_leaves_unchanged() -> None:
    text = b'{"model":"a","messages":[{"role":"user","content":"Zo\\u00eb 1.10"}],"temperature":0.70,"x":1e-7}'
    out = outgoing(parse_chat(text), cap=5, user="fg-x")
    assert b'[{"role":"user","content":"Zo\\u00eb 1.10"}]' in out
    assert b'"temperature":0.70' in out
    assert b'"x":1e-7' in out


def test_a_key_that_stands_twice_means_the_same_to_us_and_to_upstream() -> None:
    request = parse_chat(b'{"model":"cheap","messages":[{}],"\\u006dodel":"dear"}')
    out = outgoing(request, cap=5, user="fg-x")
    assert request.model == "dear"
    assert out.count(b"model") == 1
    assert json.loads(out)["model"] == "dear"


def test_the_cap_takes_the_place_of_the_clients_own() -> None:
    assert sent(BODY)["max_tokens"] == 100
    assert sent(BODY | {"max_tokens": 900_000})["max_tokens"] == 100
    both = sent(BODY | {"max_tokens": 900_000, "max_completion_tokens": 7_000})
    assert (both["max_tokens"], both["max_completion_tokens"]) == (100, 100)
    assert "max_tokens" not in sent(BODY | {"max_completion_tokens": 7_000, "max_tokens": None}) or (
        sent(BODY | {"max_completion_tokens": 7_000, "max_tokens": None})["max_tokens"] is None
    )


def test_the_person_is_a_pseudonym_upstream() -> None:
    assert sent(BODY | {"user": "zoe@example.com"})["user"] == "fg-x"


def test_usage_is_asked_for_on_streams_whatever_the_client_says() -> None:
    assert sent(BODY | {"stream": True})["stream_options"] == {"include_usage": True}
    asked = sent(BODY | {"stream": True, "stream_options": {"include_usage": False, "other": 1}})
    assert asked["stream_options"] == {"include_usage": True, "other": 1}
    assert "stream_options" not in sent(BODY)


def test_a_reasoning_budget_stays_below_the_cap() -> None:
    assert sent(BODY | {"reasoning": {"max_tokens": 8_000, "exclude": True}}, cap=1_000)["reasoning"] == {
        "max_tokens": 500,
        "exclude": True,
    }
    assert sent(BODY | {"reasoning": {"max_tokens": 500}}, cap=1_000)["reasoning"] == {"max_tokens": 500}
    assert sent(BODY | {"reasoning": {"effort": "high"}}, cap=10)["reasoning"] == {"effort": "high"}


def test_every_model_that_may_answer_is_a_candidate() -> None:
    body = BODY | {"models": ["b", "openai/gpt-4o-mini"], "fallbacks": [{"model": "c"}]}
    request = parse_chat(json.dumps(body).encode())
    assert request.candidates == ("openai/gpt-4o-mini", "b", "c")


def test_a_ceiling_of_prices_travels_along_and_a_lower_one_stays() -> None:
    ceiling = Ceiling(prompt=Decimal("0.15"), completion=Decimal("0.6"))

    def provider(**own: object) -> object:
        body = BODY | ({"provider": own} if own else {})
        sent = outgoing(parse_chat(json.dumps(body).encode()), cap=1, user="u", ceiling=ceiling)
        return json.loads(sent, parse_float=str)["provider"]

    assert provider() == {"max_price": {"prompt": "0.150001", "completion": "0.600001"}}
    assert provider(order=["x"], max_price={"prompt": 0.1, "completion": 5, "image": 1}) == {
        "order": ["x"],
        "max_price": {"prompt": "0.1", "completion": "0.600001", "image": 1},
    }
    assert provider(max_price={"prompt": "-1", "completion": "free"}) == {
        "max_price": {"prompt": "0.150001", "completion": "0.600001"}
    }
