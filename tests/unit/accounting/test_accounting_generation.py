"""OpenRouter's answer about a generation: read exactly, nonsense counts as not there."""

import json
from decimal import Decimal

import pytest

from faregate.accounting.generation import AskFailed, Generation, parse_generation

FULL = {
    "id": "gen-1790983685-abc",
    "model": "google/gemini-3.1-pro-preview-20260219",
    "provider_name": "Google AI Studio",
    "tokens_prompt": 40,
    "tokens_completion": 60,
    "native_tokens_prompt": 49,
    "native_tokens_completion": 71,
    "native_tokens_reasoning": 5,
    "native_tokens_cached": 0,
    "cancelled": True,
    "finish_reason": "stop",
    "is_byok": False,
    "usage": 0.04,
    "total_cost": 0.04,
    "upstream_inference_cost": 0,
}


def parsed(**changes):
    return parse_generation(json.dumps({"data": FULL | changes}).encode())


def test_a_generation_is_read_whole():
    assert parsed() == Generation(
        id="gen-1790983685-abc",
        cost=Decimal("0.04"),
        model="google/gemini-3.1-pro-preview-20260219",
        provider="Google AI Studio",
        prompt_tokens=49,
        completion_tokens=71,
        cached_tokens=0,
        reasoning_tokens=5,
        cancelled=True,
        finish_reason="stop",
    )


@pytest.mark.parametrize("written", ["0.0000057915", "5.7915e-06", "1e-7", "0.1", "0", "12"])
def test_the_cost_is_what_is_written_to_the_last_digit(written):
    body = b'{"data":{"total_cost":' + written.encode() + b"}}"

    assert parse_generation(body).cost == Decimal(written)


def test_under_byok_the_bill_of_the_provider_is_part_of_the_cost():
    assert parsed(is_byok=True, total_cost=0.001, upstream_inference_cost=0.028442).cost == Decimal("0.029442")


def test_under_byok_without_the_bill_of_the_provider_the_cost_is_not_known():
    assert parsed(is_byok=True, total_cost=0, upstream_inference_cost=None).cost is None


def test_without_byok_the_price_of_the_provider_is_not_added():
    assert parsed(upstream_inference_cost=0.05).cost == Decimal("0.04")


@pytest.mark.parametrize("nonsense", [-1, True, "0.04", None, 10**9, [], {}])
def test_a_cost_that_is_nonsense_is_not_there(nonsense):
    assert parsed(total_cost=nonsense, usage=nonsense).cost is None


def test_the_cost_under_its_other_name_is_as_good():
    assert parsed(total_cost=None, usage=0.03).cost == Decimal("0.03")


@pytest.mark.parametrize("nonsense", [-1, True, "49", None, 10**15, 4.5])
def test_tokens_that_are_nonsense_are_not_there(nonsense):
    generation = parsed(native_tokens_prompt=nonsense, tokens_prompt=nonsense)

    assert generation.prompt_tokens is None
    assert generation.completion_tokens == 71


def test_tokens_that_the_model_did_not_count_are_those_that_openrouter_counted():
    assert parsed(native_tokens_completion=None).completion_tokens == 60


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>502</html>", b"[]", b'{"data":null}', b'{"data":{"total_cost":NaN}}', b"[" * 100_000, b"\xff"],
)
def test_an_answer_that_cannot_be_read_is_no_answer(body):
    with pytest.raises(AskFailed):
        parse_generation(body)


def test_a_cost_beyond_all_numbers_is_not_there():
    assert parse_generation(b'{"data":{"total_cost":1e999999}}').cost is None
