"""The figures of an answer, to the last digit, and the nonsense that must count as missing."""

from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from faregate.gateway.usage_reader import Usage, read_usage

FULL = b"""{"prompt_tokens":15,"completion_tokens":6,"total_tokens":21,"cost":0.0000057915,"is_byok":false,
 "prompt_tokens_details":{"cached_tokens":4},"cost_details":{"upstream_inference_cost":0.00000585},
 "completion_tokens_details":{"reasoning_tokens":3}}"""


def test_the_cost_is_openrouters_own_to_the_last_digit() -> None:
    assert read_usage(FULL) == Usage(15, 6, 21, 4, 3, Decimal("0.0000057915"))


def test_a_cost_in_exponent_form_is_exact() -> None:
    usage = read_usage(b'{"prompt_tokens":6,"completion_tokens":0,"cost":1.2e-7}')
    assert usage is not None
    assert usage.cost == Decimal("0.00000012")
    assert usage.total_tokens == 6


def test_zero_is_zero_and_not_missing() -> None:
    usage = read_usage(b'{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0,"cost":0}')
    assert usage == Usage(0, 0, 0, 0, 0, Decimal(0))


def test_under_byok_the_providers_own_bill_is_part_of_the_cost() -> None:
    text = (
        b'{"prompt_tokens":1,"completion_tokens":1,"cost":0.001,"is_byok":true,'
        b'"cost_details":{"upstream_inference_cost":0.028442}}'
    )
    usage = read_usage(text)
    assert usage is not None
    assert usage.cost == Decimal("0.029442")


def test_under_byok_without_the_providers_bill_the_cost_is_unknown() -> None:
    usage = read_usage(b'{"prompt_tokens":1,"completion_tokens":1,"cost":0,"is_byok":true,"cost_details":null}')
    assert usage is not None
    assert usage.cost is None


@pytest.mark.parametrize(
    "cost", ["null", "-0.01", "true", '"0.01"', "1e30", "-1e-30", "{}", "1e99999999", "99999999999999999999999999"]
)
def test_a_cost_that_is_nonsense_counts_as_missing(cost: str) -> None:
    usage = read_usage(b'{"prompt_tokens":1,"completion_tokens":1,"cost":' + cost.encode() + b"}")
    assert usage is not None
    assert usage.cost is None


@pytest.mark.parametrize("tokens", ["null", "-1", "true", '"3"', "1.5", "1e300", "1e99999999", "-1e99999999", "NaN"])
def test_token_counts_that_are_nonsense_count_as_missing(tokens: str) -> None:
    assert read_usage(b'{"prompt_tokens":1,"completion_tokens":' + tokens.encode() + b',"cost":1}') is None


def test_reasoning_may_exceed_completion() -> None:
    usage = read_usage(
        b'{"prompt_tokens":1,"completion_tokens":935,"completion_tokens_details":{"reasoning_tokens":990}}'
    )
    assert usage is not None
    assert usage.reasoning_tokens == 990


@pytest.mark.parametrize("cost", [b"1e999999999999999999999", b'"\xff"', b"[" * 100_000 + b"]" * 100_000])
def test_a_cost_that_cannot_even_be_decoded_leaves_nothing_to_be_charged(cost: bytes) -> None:
    # Neither an error of ours: then the answer would be lost, too.
    assert read_usage(b'{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2,"cost":%b}' % cost) is None


@pytest.mark.parametrize("unread", [b'"note":"\xff"', b'"\xff":1', b'"note":1e999999999999999999999'])
def test_what_is_not_read_harms_nothing(unread: bytes) -> None:
    raw = b'{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2,"cost":0.5,%b}' % unread
    assert read_usage(raw) == Usage(1, 1, 2, 0, 0, Decimal("0.5"))


@pytest.mark.parametrize(
    "details", ["null", "7", '{"cached_tokens":null}', '{"cached_tokens":-1}', '{"cached_tokens":""}']
)
def test_details_that_are_nonsense_say_nothing_of_the_rest(details: str) -> None:
    raw = (
        '{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,"cost":0.5,"prompt_tokens_details":' + details + "}"
    )
    assert read_usage(raw.encode()) == Usage(3, 2, 5, 0, 0, Decimal("0.5"))


def test_of_a_field_that_comes_twice_the_last_one_counts() -> None:
    raw = b'{"prompt_tokens":-3,"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,"cost":"x","cost":0.5}'
    assert read_usage(raw) == Usage(3, 2, 5, 0, 0, Decimal("0.5"))


TOKENS = st.sampled_from([0, 1, 44, 2**40, 2**40 + 1, -1, 10**30, None, True, "3", 5.0, 1.5, [], {}])
COSTS = st.sampled_from([0, 1, 8.64e-05, 10_000, 10_001, -0.01, None, False, "0.01", [], {}])
USAGES = st.fixed_dictionaries(
    {},
    optional={
        "prompt_tokens": TOKENS,
        "completion_tokens": TOKENS,
        "total_tokens": TOKENS,
        "cost": COSTS,
        "is_byok": st.sampled_from([True, False, None, 1]),
        "prompt_tokens_details": st.fixed_dictionaries({}, optional={"cached_tokens": TOKENS}) | st.none(),
        "completion_tokens_details": st.fixed_dictionaries({}, optional={"reasoning_tokens": TOKENS}) | st.none(),
        "cost_details": st.fixed_dictionaries({}, optional={"upstream_inference_cost": COSTS}) | st.none(),
    },
)


@given(USAGES)
def test_a_usage_is_read_the_same_at_once_and_field_by_field(usage: dict[str, object]) -> None:
    raw = msgspec.json.encode(usage | {"object": "usage"})
    # Said first, and then what the usage says: odd enough for the careful way, and without a meaning.
    odd = b'{"is_byok":null,' + raw[1:]
    assert read_usage(raw) == read_usage(odd)
