"""The models on sale: enough of each kind, found by every name, priced so that bills stay exact."""

import json
from decimal import Decimal

import pytest

from faregate.simulator.catalogue import Catalogue
from faregate.simulator.models import MODELS

CATALOGUE = Catalogue(MODELS)
LISTED = json.loads(CATALOGUE.body)["data"]


def _model(name: str):
    found = CATALOGUE.find(name)
    assert found is not None
    return found


def test_there_are_some_thirty_models_each_with_its_own_id() -> None:
    assert len(MODELS) >= 30
    assert len({model.id for model in MODELS}) == len(MODELS)
    assert [entry["id"] for entry in LISTED] == [model.id for model in MODELS]


def test_every_kind_is_on_sale() -> None:
    prices = [model.prices for model in MODELS]
    assert any(price.prompt == price.completion == 0 for price in prices)
    assert any(0 < price.completion < Decimal("0.000001") for price in prices)
    assert any(price.completion >= Decimal("0.00005") for price in prices)
    assert any(price.request for price in prices)
    assert any(price.reasoning for price in prices)
    assert any(price.discount for price in prices)
    assert any(price.prompt == -1 for price in prices)
    assert any(len(model.overrides) > 1 for model in MODELS)
    assert any(model.must_think for model in MODELS)
    assert any(model.max_output is not None and model.max_output < 256 for model in MODELS)
    assert any(model.max_output is None for model in MODELS)


def test_prices_leave_two_decimals_for_a_discount() -> None:
    for model in MODELS:
        for key, price in LISTED[MODELS.index(model)]["pricing"].items():
            if key not in ("overrides", "discount"):
                assert isinstance(price, str)
                assert -Decimal(price).as_tuple().exponent <= 10, (model.id, key)


def test_an_entry_has_the_keys_of_the_wire_in_their_order() -> None:
    entry = next(entry for entry in LISTED if entry["id"] == "openai/gpt-6.1-sol")
    assert list(entry) == [
        *("id", "canonical_slug", "hugging_face_id", "name", "created", "description", "context_length"),
        *("architecture", "pricing", "top_provider", "per_request_limits", "supported_parameters"),
        *("default_parameters", "supported_voices", "knowledge_cutoff", "expiration_date", "links", "reasoning"),
    ]
    assert entry["canonical_slug"] == "openai/gpt-6.1-sol-20260929"
    assert entry["pricing"] == {
        "prompt": "0.000002",
        "completion": "0.00001",
        "input_cache_read": "0.0000001",
        "input_cache_write": "0.0000025",
        "overrides": [
            {
                "min_prompt_tokens": 272_000,
                "prompt": "0.000004",
                "completion": "0.000015",
                "input_cache_read": "0.0000002",
                "input_cache_write": "0.000005",
            }
        ],
    }


def test_a_discount_is_a_number_and_a_price_a_string() -> None:
    entry = next(entry for entry in LISTED if entry["id"] == "openai/gpt-4.1-nano")
    assert entry["pricing"]["discount"] == 0.01
    assert entry["pricing"]["prompt"] == "0.0000001"


def test_overrides_apply_strictly_above_their_number_and_the_later_wins_key_by_key() -> None:
    tiered = _model("simulator/tiered")
    assert tiered.prices_at(1_000) == tiered.prices
    second = tiered.prices_at(1_001)
    assert (second.prompt, second.completion) == (Decimal("0.000002"), Decimal("0.000006"))
    assert second.cache_read == tiered.prices.cache_read
    third = tiered.prices_at(4_001)
    assert (third.prompt, third.cache_read) == (Decimal("0.000003"), Decimal("0.0000005"))


@pytest.mark.parametrize(
    ("name", "served"),
    [
        ("openai/gpt-4o-mini", "openai/gpt-4o-mini"),
        ("openai/gpt-4o-mini-20240718", "openai/gpt-4o-mini"),
        ("openai/gpt-4o-mini:nitro", "openai/gpt-4o-mini"),
        ("~openai/gpt-mini-latest", "openai/gpt-4o-mini"),
        ("openrouter/auto", "openai/gpt-4.1-nano"),
        ("liquid/lfm-2.5-2.6b:free", "liquid/lfm-2.5-2.6b:free"),
    ],
)
def test_a_model_answers_to_each_of_its_names(name: str, served: str) -> None:
    assert _model(name).id == served


@pytest.mark.parametrize("name", ["", "gpt-4o-mini", "openai/gpt-4o-mini:free", "openai/nothing:nitro"])
def test_other_names_are_unknown(name: str) -> None:
    assert CATALOGUE.find(name) is None
