"""Model patterns: `*` is the only special character, case does not count, the whole name must fit."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faregate.policy.model import Policy
from faregate.policy.patterns import any_matches, is_allowed, limit_applies, matches


@pytest.mark.parametrize(
    ("pattern", "model", "fits"),
    [
        ("openai/gpt-4o", "openai/gpt-4o", True),
        ("openai/gpt-4o", "openai/gpt-4o-mini", False),
        ("openai/*", "openai/gpt-4o:online", True),
        ("openai/*", "azure/openai/gpt-4o", False),
        ("OpenAI/GPT-*", "openai/gpt-4o", True),
        ("openai/gpt-*", "OpenAI/GPT-4O", True),
        ("*:free", "meta/llama:free", True),
        ("*", "", True),
        ("*mini*", "openai/gpt-4o-mini:online", True),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("a*b*a", "aba", True),
        ("a*ab*b", "aab", False),
        ("openai/gpt-?o", "openai/gpt-4o", False),
        ("openai/[a-z]*", "openai/gpt-4o", False),
        ("openai.gpt", "openai/gpt", False),
        ("a*", "a\nb", True),
    ],
)
def test_a_pattern_is_a_whole_name_with_stars(pattern, model, fits):
    assert matches(pattern, model) is fits


@given(
    pattern=st.text(alphabet="aAb*.", max_size=8),
    model=st.text(alphabet="abB.:/", max_size=12),
)
def test_patterns_mean_what_the_regular_expression_means(pattern, model):
    expression = ".*".join(re.escape(piece) for piece in pattern.split("*"))
    assert matches(pattern, model) is bool(re.fullmatch(expression, model, re.IGNORECASE | re.DOTALL))


@given(model=st.text(alphabet="ab:", min_size=190, max_size=210))
def test_names_too_long_to_be_remembered_are_matched_all_the_same(model):
    assert matches("*", model)
    assert matches(model[:50] + "*" + model[-50:], model.upper())
    assert not matches("c*", model)


def test_one_of_several_patterns_is_enough():
    assert any_matches(("openai/*", "google/*"), "google/gemini")
    assert not any_matches(("openai/*", "google/*"), "meta/llama")
    assert not any_matches((), "meta/llama")


def policy(allow=(), deny=()) -> Policy:
    return Policy("p", "P", allow=tuple(allow), deny=tuple(deny))


def test_a_policy_that_names_no_models_allows_all():
    assert is_allowed(policy(), "anything/at-all:online")


def test_what_is_not_on_the_list_is_not_allowed():
    rules = policy(allow=["openai/*", "google/gemini"])
    assert is_allowed(rules, "openai/gpt-4o")
    assert is_allowed(rules, "Google/Gemini")
    assert not is_allowed(rules, "anthropic/claude")


def test_a_variant_must_be_allowed_itself():
    assert not is_allowed(policy(allow=["openai/gpt-4o"]), "openai/gpt-4o:online")
    assert is_allowed(policy(allow=["openai/gpt-4o*"]), "openai/gpt-4o:online")


def test_deny_wins_over_allow():
    assert not is_allowed(policy(allow=["openai/*"], deny=["openai/o*"]), "openai/o3")


@pytest.mark.parametrize("model", ["openai/o3", "openai/o3:online", "openai/o3:free:online", "OPENAI/O3:nitro"])
def test_a_denied_model_is_denied_with_every_variant(model):
    assert not is_allowed(policy(deny=["openai/o3"]), model)


@pytest.mark.parametrize("model", ["openai/o3:online", "openai/o3:online:nitro", "openai/o3:free:online"])
def test_a_denied_variant_is_denied_among_others(model):
    assert not is_allowed(policy(deny=["*:online"]), model)
    assert is_allowed(policy(deny=["*:floor"]), model)


def test_another_name_of_a_denied_model_is_no_way_around():
    rules = policy(deny=["openai/gpt-5"])
    assert is_allowed(rules, "~openai/gpt-latest")
    assert not is_allowed(rules, "~openai/gpt-latest", ("openai/gpt-5",))


def test_another_name_of_an_allowed_model_is_allowed():
    assert is_allowed(policy(allow=["openai/gpt-4o"]), "openai/gpt-4o-2024-08-06", ("openai/gpt-4o",))


def test_a_limit_without_models_is_about_every_model():
    assert limit_applies((), ["openai/gpt-4o"])


def test_a_limit_applies_if_one_of_the_models_that_may_answer_fits():
    assert limit_applies(("anthropic/*",), ["openai/gpt-4o", "anthropic/claude"])
    assert not limit_applies(("anthropic/*",), ["openai/gpt-4o", "google/gemini"])


def test_a_limit_on_a_model_is_a_limit_on_its_variants():
    assert limit_applies(("openai/gpt-4o",), ["openai/gpt-4o:online"])
    assert limit_applies(("*:online",), ["openai/gpt-4o:online:nitro"])
    assert not limit_applies(("openai/gpt-4o:free",), ["openai/gpt-4o"])
