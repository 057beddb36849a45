"""The estimate that soft enforcement holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pricing_world import catalogue, entry, model

from faregate.pricing.body import PromptBound
from faregate.pricing.bound import NoPrice, bound_of
from faregate.pricing.estimate import EXPECTED_OUTPUT_TOKENS, estimate_of

CLAUDE = model(prompt="0.000003", completion="0.000015", input_cache_read="0.0000003", image="0.0048", request="0.001")
PLAIN = model(prompt="0.00000015", completion="0.0000006")


def test_a_router_has_no_price():
    router = catalogue(entry(), entry("openrouter/auto", pricing={"prompt": "-1", "completion": "-1"}))
    with pytest.raises(NoPrice):
        estimate_of(router.find("openrouter/auto"), PromptBound(1))


def test_an_estimate_holds_a_third_of_the_bytes_and_a_usual_answer():
    estimate = estimate_of(PLAIN, PromptBound(3_000))
    assert estimate.prompt_tokens == 1_000
    assert estimate.fixed_nano == 150_000 + EXPECTED_OUTPUT_TOKENS * 600
    assert estimate.nano_per_output_token == 0
    assert estimate.output_limit == 64_000


def test_requests_and_images_are_in_the_estimate():
    with_images = estimate_of(CLAUDE, PromptBound(3_000, images=2), expected_output=0)
    assert with_images.fixed_nano == 1_000 * 3_000 + 1_000_000 + 2 * 4_800_000


def test_a_prompt_is_not_estimated_above_the_context():
    assert estimate_of(PLAIN, PromptBound(10**7)).prompt_tokens == 200_000


@given(prompt=st.integers(0, 10**6), output=st.integers(0, 64_000))
def test_an_estimate_is_not_above_the_bound(prompt, output):
    estimate = estimate_of(CLAUDE, PromptBound(prompt), expected_output=output)
    bound = bound_of(CLAUDE, PromptBound(prompt))
    assert estimate.fixed_nano <= bound.fixed_nano + output * bound.nano_per_output_token
