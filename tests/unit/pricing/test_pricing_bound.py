"""The bound of a request is never under what it can cost."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pricing_world import catalogue, entry, model

from faregate.pricing.body import PromptBound
from faregate.pricing.bound import Bound, Ceiling, NoPrice, bound_of, dearest

ROUTER = catalogue(entry(), entry("openrouter/auto", pricing={"prompt": "-1", "completion": "-1"}))


def test_a_bound_is_the_prompt_and_a_price_per_token_of_the_answer():
    bound = bound_of(model(prompt="0.000002", completion="0.00001"), PromptBound(1_000))
    assert bound == Bound(
        prompt_tokens=1_000,
        fixed_nano=2_000_000,
        nano_per_output_token=10_000,
        output_limit=64_000,
        ceiling=Ceiling(prompt=Decimal(2), completion=Decimal(10)),
    )


def test_a_prompt_is_no_longer_than_the_context():
    assert bound_of(model(prompt="0.000001"), PromptBound(10**7)).prompt_tokens == 200_000


def test_a_model_of_unknown_size_bounds_neither_prompt_nor_answer():
    unknown = catalogue(entry(context_length=None, top_provider={})).find("acme/one")
    bound = bound_of(unknown, PromptBound(10**7))
    assert (bound.prompt_tokens, bound.output_limit) == (10**7, None)


def test_an_answer_is_shorter_than_the_context():
    short = catalogue(entry(context_length=8_000, top_provider={"max_completion_tokens": None})).find("acme/one")
    assert bound_of(short, PromptBound(1)).output_limit == 7_999


@pytest.mark.parametrize(
    ("pricing", "prompt", "fixed_nano"),
    [
        ({"prompt": "0.000001", "input_cache_write": "0.00000125"}, PromptBound(100), 125_000),
        ({"prompt": "0.000001", "input_cache_write_1h": "0.000002"}, PromptBound(100), 100_000),
        ({"prompt": "0.000001", "input_cache_write_1h": "0.000002"}, PromptBound(100, long_cache=True), 200_000),
        ({"prompt": "0.000001", "audio": "0.00004"}, PromptBound(100), 100_000),
        ({"prompt": "0.000001", "audio": "0.00004"}, PromptBound(100, audio=True), 4_000_000),
        ({"prompt": "0.000001", "image_token": "0.00001"}, PromptBound(100, images=1), 1_000_000),
        ({"prompt": "0.000001", "image": "0.001"}, PromptBound(100, images=3), 3_100_000),
        ({"prompt": "0.000001", "request": "0.01"}, PromptBound(100), 10_100_000),
        ({"prompt": "0.000001"}, PromptBound(100, file_pages=10), 22_100_000),
        ({"prompt": "0.0000000001"}, PromptBound(1), 1),
    ],
)
def test_what_a_prompt_holds_is_in_the_bound(pricing, prompt, fixed_nano):
    assert bound_of(model(**pricing), prompt).fixed_nano == fixed_nano


@pytest.mark.parametrize("dear", ["internal_reasoning", "image_output", "audio_output"])
def test_the_dearest_kind_of_output_counts(dear):
    assert bound_of(model(completion="0.000001", **{dear: "0.000003"}), PromptBound(1)).nano_per_output_token == 3_000


def test_a_long_prompt_pays_the_price_of_long_prompts():
    tiered = model(
        prompt="0.000002",
        completion="0.00001",
        overrides=[{"min_prompt_tokens": 1_000, "prompt": "0.000004", "completion": "0.000015"}],
    )
    assert bound_of(tiered, PromptBound(1_000)).nano_per_output_token == 10_000
    dear = Ceiling(prompt=Decimal(4), completion=Decimal(15))
    assert bound_of(tiered, PromptBound(1_001)) == Bound(1_001, 4_004_000, 15_000, 64_000, dear)


def test_an_override_that_is_cheaper_lowers_nothing():
    night = model(prompt="0.000002", overrides=[{"utc_start": "1630", "utc_end": "0030", "prompt": "0.000001"}])
    assert bound_of(night, PromptBound(10)).fixed_nano == 20_000


def test_a_router_has_no_bound():
    with pytest.raises(NoPrice, match="openrouter/auto"):
        bound_of(ROUTER.find("openrouter/auto"), PromptBound(1))


def test_of_several_candidates_the_most_of_each_part_counts():
    assert dearest([Bound(1, 20, 3, 40), Bound(10, 2, 30, 4)]) == Bound(10, 20, 30, 40)
    assert dearest([Bound(1, 2, 3, None), Bound(1, 2, 3, 4)]).output_limit is None


def test_the_ceiling_is_in_dollars_per_million_tokens():
    tiered = model(prompt="0.000002", completion="0.00001", overrides=[{"min_prompt_tokens": 9, "prompt": "0.000003"}])
    assert bound_of(tiered, PromptBound(9)).ceiling == Ceiling(Decimal(2), Decimal(10))
    both = [bound_of(one, PromptBound(10)) for one in (tiered, model(completion="0.00002"))]
    assert dearest(both).ceiling == Ceiling(Decimal(3), Decimal(20))


PRICES = st.decimals(min_value=0, max_value=Decimal("0.001"), places=16, allow_nan=False).map(
    lambda value: f"{value:f}"
)
TOKEN_PRICES = ("prompt", "completion", "input_cache_read", "input_cache_write", "internal_reasoning")
PRICING = st.fixed_dictionaries(
    {"prompt": PRICES, "completion": PRICES},
    optional={
        "request": PRICES,
        "image": PRICES,
        "input_cache_read": PRICES,
        "input_cache_write": PRICES,
        "internal_reasoning": PRICES,
        "overrides": st.lists(
            st.fixed_dictionaries(
                {"min_prompt_tokens": st.integers(1, 3_000)}, optional=dict.fromkeys(TOKEN_PRICES, PRICES)
            ),
            max_size=3,
        ),
    },
)


def cost(pricing, *, fresh, read, written, said, thought, images) -> Decimal:
    """What OpenRouter charges by its own rules: later overrides win per key, missing keys inherit."""
    prompt = fresh + read + written
    applied = dict(pricing)
    for override in pricing.get("overrides", []):
        if prompt > override["min_prompt_tokens"]:
            applied |= override

    def dollars(key: str, otherwise: str | None = None) -> Decimal:
        return Decimal(applied.get(key, applied[otherwise] if otherwise else "0"))

    return (
        dollars("request")
        + images * dollars("image")
        + fresh * dollars("prompt")
        + read * dollars("input_cache_read", "prompt")
        + written * dollars("input_cache_write", "prompt")
        + said * dollars("completion")
        + thought * dollars("internal_reasoning", "completion")
    )


@given(
    pricing=PRICING,
    prompt_tokens=st.integers(0, 5_000),
    cap=st.integers(1, 5_000),
    images=st.integers(0, 3),
    data=st.data(),
)
def test_no_use_within_the_bound_costs_more_than_the_bound(pricing, prompt_tokens, cap, images, data):
    bound = bound_of(model(**pricing), PromptBound(prompt_tokens, images=images))
    used = data.draw(st.integers(0, bound.prompt_tokens), label="prompt")
    read = min(used, data.draw(st.integers(0, 5_000), label="read"))
    written = min(used - read, data.draw(st.integers(0, 5_000), label="written"))
    answered = data.draw(st.integers(0, cap), label="answer")
    thought = min(answered, data.draw(st.integers(0, 5_000), label="thought"))
    charged = cost(
        pricing,
        fresh=used - read - written,
        read=read,
        written=written,
        said=answered - thought,
        thought=thought,
        images=images,
    )
    assert Decimal(bound.fixed_nano + cap * bound.nano_per_output_token).scaleb(-9) >= charged
