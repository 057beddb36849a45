"""Bills are exact, never above tokens times price, and end with the stream where the provider stops."""

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faregate.simulator.billing import TINY, Terms, Tokens, charge, json_number, stops_when_left
from faregate.simulator.catalogue import Prices, price_text
from faregate.simulator.models import MODELS

PRICED = [model for model in MODELS if model.prices.prompt >= 0]

amounts = st.decimals(min_value=0, max_value=10_000, places=12)


@st.composite
def token_counts(draw: st.DrawFn) -> Tokens:
    prompt = draw(st.integers(0, 300_000))
    completion = draw(st.integers(0, 128_000))
    cached = draw(st.integers(0, prompt))
    written = draw(st.integers(0, prompt - cached))
    return Tokens(prompt, completion, draw(st.integers(0, completion)), cached, written)


@given(amounts)
def test_a_number_in_json_is_the_very_amount(amount: Decimal) -> None:
    assert json.loads(json_number(amount), parse_float=Decimal, parse_int=Decimal) == amount


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("0", b"0"),
        ("0.000", b"0"),
        ("2.50", b"2.5"),
        ("10", b"10"),
        ("0.000001", b"0.000001"),
        ("0.0000057915", b"0.0000057915"),
        ("0.00000012", b"1.2e-7"),
        ("0.0000001", b"1e-7"),
        ("-0.00000012", b"-1.2e-7"),
        ("-0.5", b"-0.5"),
    ],
)
def test_numbers_are_written_as_javascript_writes_them(amount: str, text: bytes) -> None:
    assert json_number(Decimal(amount)) == text


@pytest.mark.parametrize("amount", ["1E+3", "0.10", "1.2E-7", "0"])
def test_a_bill_has_no_exponent(amount: str) -> None:
    assert "E" not in price_text(Decimal(amount))
    assert Decimal(price_text(Decimal(amount))) == Decimal(amount)


def test_a_charge_is_every_token_at_its_own_price() -> None:
    prices = Prices(
        prompt=Decimal("0.000001"),
        completion=Decimal("0.000004"),
        request=Decimal("0.01"),
        cache_read=Decimal("0.00000025"),
        cache_write=Decimal("0.00000125"),
        reasoning=Decimal("0.000008"),
    )
    charged = charge(prices, Tokens(prompt=100, completion=50, reasoning=20, cached=40, written=10), Terms())
    assert charged.upstream_prompt == Decimal("0.0000725")
    assert charged.upstream_completion == Decimal("0.00028")
    assert charged.cost == charged.total == charged.upstream == Decimal("0.0103525")


def test_tokens_without_a_price_of_their_own_cost_what_the_others_cost() -> None:
    prices = Prices(prompt=Decimal("0.000001"), completion=Decimal("0.000004"))
    special = Tokens(prompt=100, completion=50, reasoning=20, cached=40, written=10)
    assert charge(prices, special, Terms()) == charge(prices, Tokens(100, 50), Terms())


def test_a_discount_lowers_what_openrouter_charges_and_not_what_the_provider_asks() -> None:
    prices = Prices(prompt=Decimal("0.0000001"), completion=Decimal("0.0000004"))
    charged = charge(prices, Tokens(63, 6), Terms(discount=Decimal("0.01")))
    assert charged.upstream == Decimal("0.0000087")
    assert charged.cost == Decimal("0.000008613")


def test_under_byok_the_provider_bills_the_customer() -> None:
    prices = Prices(prompt=Decimal("0.000001"), completion=Decimal("0.000004"))
    charged = charge(prices, Tokens(10, 10), Terms(byok=True))
    assert charged.is_byok
    assert charged.cost == 0
    assert charged.total == charged.upstream == Decimal("0.00005")


def test_a_tiny_charge_is_never_above_the_real_one() -> None:
    terms = Terms(tiny=True)
    dear = Prices(prompt=Decimal("0.001"), completion=Decimal("0.001"))
    assert charge(dear, Tokens(10, 10), terms).cost == TINY
    assert charge(Prices(Decimal(0), Decimal(0)), Tokens(10, 10), terms).cost == 0


@given(st.sampled_from(PRICED), token_counts(), st.decimals(0, 1, places=2))
def test_no_bill_exceeds_its_tokens_at_the_dearest_price(model, tokens: Tokens, discount: Decimal) -> None:
    prices = model.prices_at(tokens.prompt)
    dearest_in = max(price for price in (prices.prompt, prices.cache_read, prices.cache_write) if price is not None)
    dearest_out = max(prices.completion, prices.reasoning or Decimal(0))
    most = tokens.prompt * dearest_in + tokens.completion * dearest_out + prices.request
    assert 0 <= charge(prices, tokens, Terms(discount=discount)).cost <= most


@given(st.sampled_from(PRICED), token_counts())
def test_a_bill_at_the_models_own_discount_is_exact_to_the_pico_dollar(model, tokens: Tokens) -> None:
    prices = model.prices_at(tokens.prompt)
    charged = charge(prices, tokens, Terms(discount=prices.discount))
    assert charged.cost == charged.upstream * (1 - prices.discount)


@given(token_counts(), st.integers(0, 128_000))
def test_an_unfinished_answer_reasoned_first(tokens: Tokens, generated: int) -> None:
    partial = tokens.up_to(generated)
    assert partial.completion == generated
    assert partial.reasoning == min(tokens.reasoning, generated)
    assert (partial.prompt, partial.cached, partial.written) == (tokens.prompt, tokens.cached, tokens.written)


@pytest.mark.parametrize("provider", ["OpenAI", "xAI", "XAI", "DeepInfra", "Azure", "Anthropic"])
def test_some_providers_stop_when_left(provider: str) -> None:
    assert stops_when_left(provider)


@pytest.mark.parametrize(
    "provider", ["Groq", "Google AI Studio", "Google", "Amazon Bedrock", "Mistral", "Nobody Knows"]
)
def test_the_others_run_on(provider: str) -> None:
    assert not stops_when_left(provider)
