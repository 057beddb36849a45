"""The claims of a request, and what a refusal says to people and to programs."""

from zoneinfo import ZoneInfo

import pytest

from faregate.gateway.limits import Terms, over_limit
from faregate.ledger.counters import Concerned
from faregate.ledger.forms import Claims
from faregate.ledger.port import Counter, Refused
from faregate.policy.model import Enforcement, Limit, Meter, Policy, Scope, Window
from faregate.policy.rulebook import Rulebook
from faregate.policy.windows import Calendar
from faregate.pricing.bound import Bound
from faregate.records import Facts

NOON = 1_795_435_200.0
ZONE = ZoneInfo("UTC")
BOUND = Bound(prompt_tokens=100, fixed_nano=5_000, nano_per_output_token=7, output_limit=None)
FACTS = Facts(
    request_id="r",
    admitted_at=NOON,
    connection="c",
    user_id="u",
    email=None,
    groups=("g",),
    policy_id="p",
    model="openai/x",
    candidates=("openai/x",),
)
DAY = Counter(Scope.USER, "u", Meter.USD, Window.DAY, (), int(NOON) - 43_200, int(NOON) + 43_200)


def asked(terms: Terms, book: Rulebook, assigned: str | None = "p") -> Claims:
    """The claims of the request under these rules."""
    names = FACTS.names()
    counters = Concerned(Calendar(ZONE)).by(book.shapes, FACTS.user_id, FACTS.groups, names, NOON)
    return terms.claims(FACTS.user_id, names, counters, book.resolve(assigned, FACTS.groups), BOUND)


def claims(*policies: Policy, assigned: str | None = "p") -> dict[str, tuple[int, int, int | None, bool]]:
    """What is claimed, by scope, meter and window."""
    book = Rulebook(policies, [])
    found = asked(Terms(), book, assigned)
    return {
        f"{c.counter.scope} {c.counter.meter} {c.counter.window}": (c.fixed, c.per_output_token, c.limit, c.enforce)
        for c in found
    }


def policy(*limits: Limit, policy_id: str = "p", enforcement: Enforcement = Enforcement.STRICT) -> Policy:
    """A policy with these limits."""
    return Policy(policy_id, policy_id, limits=limits, enforcement=enforcement)


LIMITS = (
    Limit(Meter.CONCURRENT, None, 3),
    Limit(Meter.REQUESTS, Window.MINUTE, 20),
    Limit(Meter.TOKENS, Window.DAY, 1_000),
    Limit(Meter.USD, Window.MONTH, 900, Scope.GROUP),
)


def test_new_rules_apply_to_the_next_request_whatever_was_remembered() -> None:
    terms = Terms()
    for amount in (900, 901):
        book = Rulebook([policy(Limit(Meter.USD, Window.DAY, amount))], [])
        assert [claim.limit for claim in asked(terms, book)] == [amount]
    assert [claim.limit for claim in asked(terms, book, "other")] == [None]


def test_the_form_of_the_claims_stays_the_same_while_nothing_changes() -> None:
    terms, book = Terms(), Rulebook([policy(*LIMITS)], [])
    counters = Concerned(Calendar(ZONE)).by(book.shapes, FACTS.user_id, FACTS.groups, FACTS.names(), NOON)
    rules = book.resolve("p", FACTS.groups)
    bounds = (BOUND, Bound(prompt_tokens=1, fixed_nano=2, nano_per_output_token=3, output_limit=None))

    first, second = (terms.claims(FACTS.user_id, FACTS.names(), counters, rules, bound) for bound in bounds)

    assert first.form is second.form
    assert [claim.fixed for claim in first] == [5_000, 100, 1, 1]
    assert [claim.fixed for claim in second] == [2, 1, 1, 1]


def test_strict_claims_the_bound_on_every_meter_longest_window_first() -> None:
    found = claims(policy(*LIMITS))
    assert found == {
        "group usd month": (5_000, 7, 900, True),
        "user tokens day": (100, 1, 1_000, True),
        "user requests minute": (1, 0, 20, True),
        "user concurrent None": (1, 0, 3, True),
    }
    assert list(found) == ["group usd month", "user tokens day", "user requests minute", "user concurrent None"]


def test_soft_claims_an_estimate_that_no_cap_changes() -> None:
    assert claims(policy(*LIMITS, enforcement=Enforcement.SOFT))["user tokens day"] == (1_100, 0, 1_000, True)


def test_shadow_claims_without_enforcing() -> None:
    assert {claim[3] for claim in claims(policy(*LIMITS, enforcement=Enforcement.SHADOW)).values()} == {False}


def test_the_pool_of_a_group_is_held_also_by_those_whom_it_does_not_limit() -> None:
    other = policy(Limit(Meter.USD, Window.MONTH, 900, Scope.GROUP), policy_id="other")
    assert claims(policy(), other) == {"group usd month": (5_000, 7, None, True)}


def refused(counter: Counter, used: int, held: int, limit: int, frees_at: float | None = None) -> dict[str, str]:
    """Headers, type and code of a refusal of a request that needs 10."""
    error = over_limit(Refused(counter, used, held, limit, 10, frees_at), NOON, ZONE, "the help desk")
    assert error.status == 429
    assert "the help desk" in error.message
    return {**error.headers, "type": error.type, "code": error.code}


def test_a_window_that_is_used_up_says_when_it_ends() -> None:
    assert refused(DAY, 95, 0, 100) == {
        "retry-after": "43201",
        "ratelimit-policy": '"user-usd-day";q=100;qu="nano-usd";w=86400',
        "ratelimit": '"user-usd-day";r=5;t=43201',
        "type": "quota_exceeded",
        "code": "user_usd_day",
    }


def test_what_only_running_requests_are_in_the_way_of_can_be_tried_again_soon() -> None:
    assert refused(DAY, 50, 45, 100)["retry-after"] == "2"


def test_a_rate_says_when_there_is_room_again() -> None:
    rate = Counter(Scope.USER, "u", Meter.REQUESTS, Window.MINUTE)
    found = refused(rate, 100, 0, 100, frees_at=NOON + 7.5)
    assert (found["retry-after"], found["type"], found["code"]) == ("8", "rate_limit_exceeded", "rate_limit_exceeded")
    assert found["ratelimit-policy"].endswith("w=60")


@pytest.mark.parametrize("window", [Window.TOTAL])
def test_a_total_is_not_retried_soon(window: Window) -> None:
    assert refused(Counter(Scope.EVERYONE, "", Meter.USD, window), 95, 0, 100)["retry-after"] == "86400"
