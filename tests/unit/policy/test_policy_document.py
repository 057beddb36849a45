"""The policy document: what is understood, and what is refused by the name of the field."""

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faregate.policy.document import InvalidPolicy, document_of, parse_policy
from faregate.policy.model import Enforcement, Limit, Meter, Policy, Scope, Window
from faregate.policy.money import MAX_COUNT

STUDENT = {
    "id": "student",
    "name": "Student",
    "limits": [
        {"meter": "usd", "window": "day", "amount": "2.50"},
        {"meter": "tokens", "window": "month", "amount": 1000000, "scope": "user"},
        {"meter": "usd", "window": "month", "amount": "900", "scope": "group"},
        {"meter": "requests", "window": "minute", "amount": 20},
        {"meter": "concurrent", "amount": 3},
        {"meter": "usd", "window": "day", "amount": "0.50", "models": ["anthropic/*"]},
    ],
    "models": {"allow": ["openai/*", "google/*"], "deny": ["*:online"]},
    "max_output_tokens": 8192,
    "enforcement": "strict",
}


def limit(**changes) -> dict:
    return {"meter": "usd", "window": "day", "amount": "1"} | changes


def with_limits(*limits) -> dict:
    return {"id": "p", "name": "P", "limits": list(limits)}


def with_changes(**changes) -> dict:
    return {"id": "p", "name": "P"} | changes


def test_the_long_form_is_read():
    assert parse_policy(STUDENT) == Policy(
        id="student",
        name="Student",
        limits=(
            Limit(Meter.USD, Window.DAY, 2_500_000_000),
            Limit(Meter.TOKENS, Window.MONTH, 1_000_000),
            Limit(Meter.USD, Window.MONTH, 900_000_000_000, Scope.GROUP),
            Limit(Meter.REQUESTS, Window.MINUTE, 20),
            Limit(Meter.CONCURRENT, None, 3),
            Limit(Meter.USD, Window.DAY, 500_000_000, models=("anthropic/*",)),
        ),
        allow=("openai/*", "google/*"),
        deny=("*:online",),
        max_output_tokens=8192,
        enforcement=Enforcement.STRICT,
    )


def test_the_short_form_is_read():
    short = {
        "id": "guest",
        "name": "Guest",
        "daily_token_limit": 5000,
        "monthly_token_limit": 90000,
        "allowed_models": ["openai/*"],
    }
    assert parse_policy(short) == Policy(
        id="guest",
        name="Guest",
        limits=(Limit(Meter.TOKENS, Window.DAY, 5000), Limit(Meter.TOKENS, Window.MONTH, 90000)),
        allow=("openai/*",),
    )


def test_the_short_form_without_its_limits_limits_nothing():
    empty = with_changes(daily_token_limit=None, monthly_token_limit=None, allowed_models=None)
    assert parse_policy(empty) == Policy("p", "P")


def test_a_policy_needs_no_more_than_an_id():
    assert parse_policy({"id": "p"}) == Policy("p", "p")


def test_patterns_are_lower_cased_and_said_once():
    document = with_changes(models={"allow": ["OpenAI/*", "openai/*"]}, limits=[limit(models=["b/*", "A/*", "a/*"])])
    policy = parse_policy(document)
    assert policy.allow == ("openai/*",)
    assert policy.limits[0].models == ("a/*", "b/*")


def test_json_numbers_are_read_whatever_the_decoder_makes_of_them():
    text = json.dumps(with_limits(limit(amount=2.5), {"meter": "tokens", "window": "day", "amount": 1e6}))
    as_decimals = parse_policy(json.loads(text, parse_float=Decimal))
    assert as_decimals == parse_policy(json.loads(text))
    assert [line.amount for line in as_decimals.limits] == [2_500_000_000, 1_000_000]


def test_a_limit_of_nothing_is_a_limit():
    assert parse_policy(with_limits(limit(amount=0))).limits[0].amount == 0


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ("text", "policy"),
        ([], "policy"),
        (None, "policy"),
        ({}, "id"),
        (with_changes(id=""), "id"),
        (with_changes(id="a b"), "id"),
        (with_changes(id="-a"), "id"),
        (with_changes(id="é"), "id"),
        (with_changes(id="a\n"), "id"),
        (with_changes(id="a" * 65), "id"),
        (with_changes(id=5), "id"),
        (with_changes(name=" "), "name"),
        (with_changes(name="a\x00b"), "name"),
        (with_changes(name="\ud800"), "name"),
        (with_changes(name="a" * 201), "name"),
        (with_changes(limit=[]), "limit"),
        (with_changes(limits={}), "limits"),
        (with_changes(limits=None), "limits"),
        (with_changes(max_output_tokens=0), "max_output_tokens"),
        (with_changes(max_output_tokens=-1), "max_output_tokens"),
        (with_changes(max_output_tokens=1.5), "max_output_tokens"),
        (with_changes(max_output_tokens=True), "max_output_tokens"),
        (with_changes(max_output_tokens="8"), "max_output_tokens"),
        (with_changes(enforcement="lenient"), "enforcement"),
        (with_limits(1), "limits[0]"),
        (with_limits(limit(), {"meter": "tokens"}), "limits[1].window"),
        (with_limits(limit(meter="euros")), "limits[0].meter"),
        (with_limits(limit(window="year")), "limits[0].window"),
        (with_limits(limit(window=None)), "limits[0].window"),
        (with_limits({"meter": "usd", "amount": 1}), "limits[0].window"),
        (with_limits(limit(meter="concurrent")), "limits[0].window"),
        (with_limits(limit(scope="role")), "limits[0].scope"),
        (with_limits(limit(per="day")), "limits[0].per"),
        (with_limits({"meter": "usd", "window": "day"}), "limits[0].amount"),
        (with_limits(limit(amount="-1")), "limits[0].amount"),
        (with_limits(limit(amount="1.0000000001")), "limits[0].amount"),
        (with_limits(limit(amount="10000000")), "limits[0].amount"),
        (with_limits(limit(amount=float("nan"))), "limits[0].amount"),
        (with_limits(limit(amount=float("inf"))), "limits[0].amount"),
        (with_limits(limit(amount=True)), "limits[0].amount"),
        (with_limits(limit(amount="much")), "limits[0].amount"),
        (with_limits(limit(meter="tokens", amount=1.5)), "limits[0].amount"),
        (with_limits(limit(meter="tokens", amount="5")), "limits[0].amount"),
        (with_limits(limit(meter="tokens", amount=False)), "limits[0].amount"),
        (with_limits(limit(meter="tokens", amount=MAX_COUNT + 1)), "limits[0].amount"),
        (with_limits(limit(meter="tokens", amount=float("nan"))), "limits[0].amount"),
        (with_limits(limit(meter="tokens", amount=Decimal("sNaN"))), "limits[0].amount"),
        (with_limits(limit(meter="tokens", amount=Decimal("1e-999999999"))), "limits[0].amount"),
        (with_limits(limit(meter="requests", amount=-1)), "limits[0].amount"),
        (with_limits(limit(models=[""])), "limits[0].models[0]"),
        (with_limits(limit(models=["a", 1])), "limits[0].models[1]"),
        (with_limits(limit(models="a")), "limits[0].models"),
        (with_limits(limit(), limit(amount=2)), "limits[1]"),
        (with_limits(limit(), limit(scope="user")), "limits[1]"),
        (with_limits(limit(models=["a", "b"]), limit(models=["B", "A"])), "limits[1]"),
        (with_changes(models=["a"]), "models"),
        (with_changes(models={"only": []}), "models.only"),
        (with_changes(models={"allow": [""]}), "models.allow[0]"),
        (with_changes(models={"allow": ["a b"]}), "models.allow[0]"),
        (with_changes(models={"allow": ["a" * 201]}), "models.allow[0]"),
        (with_changes(models={"allow": ["a/*"], "deny": ["b/*", "A/*"]}), "models.deny"),
        (with_changes(models={"allow": ["a"] * 501}), "models.allow"),
        (with_changes(limits=[], daily_token_limit=1), "daily_token_limit"),
        (with_changes(models={}, monthly_token_limit=1), "monthly_token_limit"),
        (with_changes(models={}, allowed_models=["a"]), "allowed_models"),
        (with_changes(daily_token_limit=-1), "daily_token_limit"),
        (with_changes(daily_token_limit=1.5), "daily_token_limit"),
        (with_changes(allowed_models=[""]), "allowed_models[0]"),
    ],
)
def test_what_is_wrong_is_named(document, field):
    with pytest.raises(InvalidPolicy) as refusal:
        parse_policy(document)
    assert refusal.value.field == field
    assert refusal.value.message
    assert str(refusal.value) == f"{field}: {refusal.value.message}"


def test_a_refusal_says_what_would_be_right():
    with pytest.raises(InvalidPolicy, match="must be 'requests', 'tokens', 'usd' or 'concurrent'"):
        parse_policy(with_limits(limit(meter="euros")))
    with pytest.raises(InvalidPolicy, match=r"same meter, window, scope and models as limits\[0\]"):
        parse_policy(with_limits(limit(), limit()))


def test_limits_that_differ_in_one_thing_stand_side_by_side():
    several = with_limits(
        limit(), limit(window="week"), limit(scope="group"), limit(models=["a/*"]), limit(meter="tokens", amount=1)
    )
    assert len(parse_policy(several).limits) == 5


PATTERNS = st.text(alphabet="abc/*:-", min_size=1, max_size=6)
AMOUNTS = st.integers(0, MAX_COUNT)
LIMITS = st.builds(
    Limit,
    meter=st.sampled_from([Meter.USD, Meter.TOKENS, Meter.REQUESTS]),
    window=st.sampled_from(Window),
    amount=AMOUNTS,
    scope=st.sampled_from(Scope),
    models=st.sets(PATTERNS, max_size=3).map(lambda patterns: tuple(sorted(patterns))),
) | st.builds(Limit, meter=st.just(Meter.CONCURRENT), window=st.none(), amount=AMOUNTS, scope=st.sampled_from(Scope))
POLICIES = st.builds(
    Policy,
    id=st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,10}", fullmatch=True),
    name=st.sampled_from(["Student", "مريم", "学生", "a 'quoted' name"]),
    limits=st.lists(LIMITS, max_size=5, unique_by=lambda line: (line.meter, line.window, line.scope, line.models)).map(
        tuple
    ),
    allow=st.sets(PATTERNS.map(lambda pattern: "x" + pattern), max_size=3).map(tuple),
    deny=st.sets(PATTERNS.map(lambda pattern: "y" + pattern), max_size=3).map(tuple),
    max_output_tokens=st.integers(1, 10**6),
    enforcement=st.sampled_from(Enforcement),
)


@given(POLICIES)
def test_a_policy_that_is_written_is_read_back_the_same(policy):
    assert parse_policy(json.loads(json.dumps(document_of(policy)))) == policy
