"""The catalogue: what of OpenRouter's list is understood, and by which names a model is found."""

import json

import pytest
from pricing_world import body, catalogue, entry

from faregate.pricing.catalogue import Catalogue, CatalogueError


def rates(**pricing):
    return catalogue(entry(pricing={"prompt": "0", "completion": "0"} | pricing)).find("acme/one").rates


def test_an_entry_is_read():
    found = catalogue(
        entry(
            "openai/gpt-6.1-sol",
            canonical_slug="openai/gpt-6.1-sol-20260929",
            context_length=1_050_000,
            pricing={
                "prompt": "0.000002",
                "completion": "0.00001",
                "request": "0.01",
                "image": "0.001",
                "input_cache_read": "0.0000001",
                "input_cache_write": "0.0000025",
                "internal_reasoning": "0.00002",
                "discount": 0.01,
                "overrides": [{"min_prompt_tokens": 272_000, "prompt": "0.000004", "completion": "0.000015"}],
            },
            top_provider={"context_length": 1_050_000, "max_completion_tokens": 128_000},
        )
    ).find("openai/gpt-6.1-sol")
    assert found.canonical_slug == "openai/gpt-6.1-sol-20260929"
    assert (found.context_length, found.max_completion_tokens, found.priced) == (1_050_000, 128_000, True)
    assert (found.rates.prompt, found.rates.completion) == (2_000_000_000, 10_000_000_000)
    assert (found.rates.request, found.rates.image) == (10 * 10**12, 10**12)
    assert (found.rates.input_cache_read, found.rates.input_cache_write) == (100_000_000, 2_500_000_000)
    assert found.rates.internal_reasoning == 20_000_000_000
    assert [tier.above for tier in found.tiers] == [272_000]
    assert found.tiers[0].rates.prompt == 4_000_000_000


@pytest.mark.parametrize(
    ("price", "femto"),
    [
        ("0.0000000000000001", 1),
        ("0.0000000000000011", 2),
        ("1e-7", 100_000_000),
        ("0", 0),
        (0, 0),
        (0.5, 500_000_000_000_000),
        (None, 0),
    ],
)
def test_prices_are_exact_or_rounded_up(price, femto):
    assert rates(request=price).request == femto


def test_an_override_applies_above_its_tokens_only():
    tiered = catalogue(
        entry(pricing={"prompt": "1", "completion": "1", "overrides": [{"min_prompt_tokens": 100, "prompt": "2"}]})
    ).find("acme/one")
    assert len(tiered.rates_for(100)) == 1
    assert [rate.prompt for rate in tiered.rates_for(101)] == [10**15, 2 * 10**15]


def test_an_override_by_the_clock_may_always_apply():
    tiered = catalogue(
        entry(pricing={"prompt": "1", "completion": "1", "overrides": [{"utc_start": "0900", "prompt": "2"}]})
    ).find("acme/one")
    assert len(tiered.rates_for(1)) == 2


def test_a_router_is_listed_without_a_price():
    listed = catalogue(entry(), entry("openrouter/auto", pricing={"prompt": "-1", "completion": "-1"}))
    assert not listed.find("openrouter/auto").priced
    assert listed.find("acme/one").priced


@pytest.mark.parametrize(
    "broken",
    [
        None,
        "acme/two",
        {},
        entry("acme/two", pricing=None),
        entry("acme/two", id=5),
        entry("acme/two", id=""),
        entry("acme/two", pricing={"prompt": "0.1"}),
        entry("acme/two", pricing={"prompt": "cheap", "completion": "0"}),
        entry("acme/two", pricing={"prompt": "NaN", "completion": "0"}),
        entry("acme/two", pricing={"prompt": "Infinity", "completion": "0"}),
        entry("acme/two", pricing={"prompt": "1e999999", "completion": "0"}),
        entry("acme/two", pricing={"prompt": True, "completion": "0"}),
        entry("acme/two", pricing={"prompt": [], "completion": "0"}),
        entry("acme/two", pricing={"prompt": "0." + "0" * 90 + "1", "completion": "0"}),
        entry("acme/two", pricing={"prompt": "0", "completion": "0", "request": "?"}),
        entry("acme/two", pricing={"prompt": "0", "completion": "0", "overrides": {}}),
        entry("acme/two", pricing={"prompt": "0", "completion": "0", "overrides": [1]}),
    ],
)
def test_an_entry_that_cannot_be_read_is_left_out_and_counted(broken):
    listed = catalogue(broken, entry())
    assert listed.skipped == 1
    assert len(listed) == 1
    assert listed.find("acme/two") is None


def test_what_is_missing_or_strange_beside_the_prices_is_unknown():
    odd = entry(context_length=None, top_provider=None, canonical_slug=None, alias_target="x", architecture=3)
    found = catalogue(odd).find("acme/one")
    assert (found.context_length, found.max_completion_tokens) == (None, None)
    assert found.canonical_slug == "acme/one"


def test_the_longer_of_two_contexts_counts():
    assert catalogue(entry(top_provider={"context_length": 300_000})).find("acme/one").context_length == 300_000


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"<html>502</html>",
        b"[]",
        b'{"data": {}}',
        b'{"error": {"code": 500}}',
        b'{"data": []}',
        b"\xff",
        b'{"data": "\xff"}',
        b"[" * 100_000,
        body(entry(pricing={"prompt": "-1", "completion": "-1"})),
        body(None),
    ],
)
def test_an_answer_without_prices_is_no_catalogue(answer):
    with pytest.raises(CatalogueError):
        Catalogue.parse(answer)


def test_a_model_is_found_by_id_and_by_dated_slug():
    listed = catalogue(entry())
    assert listed.find("acme/one") is listed.find("acme/one-20260929")
    assert listed.find("acme/one-20250101") is None


def test_case_counts():
    assert catalogue(entry()).find("Acme/One") is None


@pytest.mark.parametrize("name", ["acme/one:nitro", "acme/one:floor", "acme/one:exacto", "acme/one:online:nitro"])
def test_dynamic_variants_are_of_the_model(name):
    listed = catalogue(entry())
    assert listed.find(name) is listed.find("acme/one")
    assert listed.find(name.replace("one", "one-20260929")) is listed.find("acme/one")


@pytest.mark.parametrize("name", ["acme/one:free", "acme/one:thinking", "acme/one:", "acme/one:Nitro", ":nitro", ""])
def test_other_variants_are_models_of_their_own(name):
    assert catalogue(entry()).find(name) is None


def test_a_listed_variant_is_found_before_it_is_taken_apart():
    listed = catalogue(entry(), entry("acme/one:free"), entry("acme/one:online"))
    assert listed.find("acme/one:free:online").id == "acme/one:free"
    assert listed.find("acme/one:online").id == "acme/one:online"


@pytest.mark.parametrize("order", [1, -1])
def test_a_slug_that_variants_share_means_the_plain_model(order):
    alias = entry("~acme/one-latest", canonical_slug="acme/one-20260929", alias_target={"slug": "acme/gone"})
    listed = catalogue(*[entry("acme/one:free"), entry("acme/one"), entry("acme/one:extended"), alias][::order])
    assert listed.find("acme/one-20260929").id == "acme/one"


@pytest.mark.parametrize("order", [1, -1])
def test_an_alias_is_the_model_it_points_at(order):
    alias = entry("~acme/one-latest", alias_target={"name": "One", "slug": "acme/one"})
    listed = catalogue(*[alias, entry()][::order])
    assert listed.find("~acme/one-latest").id == "acme/one"
    assert listed.find("~acme/one-latest:nitro").id == "acme/one"


def test_an_alias_whose_model_is_not_listed_stands_for_itself():
    listed = catalogue(entry("~acme/two-latest", alias_target={"slug": "acme/two"}))
    assert listed.find("~acme/two-latest").id == "~acme/two-latest"


@pytest.mark.parametrize("name", ["@preset/mine", "acme/one@preset/mine", "acme/one@preset/mine:nitro"])
def test_a_preset_is_never_found(name):
    assert catalogue(entry(), entry(name)).find(name) is None


def test_a_name_of_megabytes_is_not_taken_apart():
    assert catalogue(entry()).find("acme/one" + ":nitro" * 1_000_000) is None


def test_the_other_names_of_a_model_keep_the_variant():
    listed = catalogue(entry(), entry("~acme/latest", alias_target={"slug": "acme/one"}))
    assert listed.names("acme/one") == ("acme/one-20260929",)
    assert listed.names("~acme/latest:online") == ("acme/one:online", "acme/one-20260929:online")
    assert listed.names("acme/none") == ()


def test_unknown_fields_are_ignored():
    document = json.loads(body(entry(brand_new={"deep": [1]}))) | {"more": 1}
    assert len(Catalogue.parse(json.dumps(document).encode())) == 1
