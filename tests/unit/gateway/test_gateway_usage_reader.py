"""The figures of an answer, to the last digit, and the nonsense that must count as missing."""

from decimal import Decimal

import pytest

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
