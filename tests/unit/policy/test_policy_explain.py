"""What a person reads in the chat when a limit says no: which, how much, until when, whom to ask."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from faregate.policy.explain import (
    format_amount,
    model_not_allowed_sentence,
    model_unknown_sentence,
    refusal_sentence,
)
from faregate.policy.model import Meter, Policy, Scope, Window

AMSTERDAM = ZoneInfo("Europe/Amsterdam")
MIDNIGHT = datetime(2026, 11, 24, tzinfo=AMSTERDAM).timestamp()
ASK = "If you need more, ask your administrator."
RESET = "It resets on Tuesday 24 November 2026 at 00:00 (Europe/Amsterdam)."
USD = 1_000_000_000


def sentence(**facts) -> str:
    given = {
        "scope": Scope.USER,
        "meter": Meter.USD,
        "window": Window.DAY,
        "used": 0,
        "held": 0,
        "limit": 0,
        "needed": 1,
        "resets_at": MIDNIGHT,
        "zone": AMSTERDAM,
    }
    return refusal_sentence(**(given | facts))


def test_a_limit_that_is_used_up():
    assert sentence(used=2_500_000_000, limit=2_500_000_000) == (
        f"Your daily limit of $2.50 is used up: $2.50 is spent. {RESET} {ASK}"
    )


def test_a_limit_that_running_requests_fill_frees_when_they_end():
    assert sentence(used=2_498_700_000, held=1_300_000, limit=2_500_000_000, needed=400_000) == (
        "Your daily limit of $2.50 is used up: $2.4987 is spent, and $0.0013 is held by requests that are still "
        f"running. It fits once those have ended: try again in a moment. {RESET} {ASK}"
    )


def test_something_is_left_but_too_little_for_this_request():
    assert sentence(used=2 * USD, limit=2_500_000_000, needed=700_000_000) == (
        "Your daily limit of $2.50 leaves too little for this request: $2.00 is spent, so $0.50 is left, and this "
        f"request needs at least $0.70. {RESET} {ASK}"
    )


def test_waiting_does_not_help_a_request_that_is_larger_than_the_limit():
    text = sentence(used=USD, limit=2 * USD, needed=3 * USD)
    assert "needs at least $3.00" in text
    assert "would not fit into an unused limit either" in text
    assert "resets" not in text


def test_a_limit_of_zero_says_so():
    assert sentence(limit=0) == f"Your daily limit of $0.00 leaves nothing to use. {ASK}"


def test_tokens_of_a_group_have_separators():
    assert sentence(
        scope=Scope.GROUP,
        group="Physics",
        meter=Meter.TOKENS,
        window=Window.MONTH,
        used=998_000,
        held=1,
        limit=1_000_000,
        needed=5_000,
    ) == (
        'The monthly limit of 1,000,000 tokens of the group "Physics" leaves too little for this request: 998,000 are '
        "used, and 1 is held by requests that are still running, so 1,999 tokens are left, and this request needs at "
        f"least 5,000 tokens. {RESET} {ASK}"
    )


def test_a_limit_on_some_models_names_them():
    assert sentence(used=USD, limit=USD, models=("anthropic/*", "openai/o*")).startswith(
        "Your daily limit of $1.00 on anthropic/*, openai/o* is used up"
    )


def test_a_limit_for_everyone():
    assert sentence(scope=Scope.EVERYONE, meter=Meter.REQUESTS, used=1, limit=1) == (
        f"The daily limit of 1 request for everyone together is used up: 1 was made. {RESET} {ASK}"
    )


def test_a_rate_says_to_the_second_when_there_is_room():
    assert sentence(meter=Meter.REQUESTS, window=Window.MINUTE, used=18, held=2, limit=20, resets_at=MIDNIGHT + 12) == (
        "Your limit of 20 requests a minute is used up: 20 were made in the last minute. There is room again on "
        f"Tuesday 24 November 2026 at 00:00:12 (Europe/Amsterdam). {ASK}"
    )


def test_a_rate_whose_room_is_not_known_asks_for_a_minute():
    text = sentence(meter=Meter.TOKENS, window=Window.MINUTE, used=20, limit=20, resets_at=None)
    assert "Try again in a minute." in text


def test_parallel_requests_free_when_one_ends():
    assert sentence(meter=Meter.CONCURRENT, window=None, held=3, limit=3, resets_at=None) == (
        f"Your limit of 3 requests at once is used up: 3 are running. Try again when one of them has ended. {ASK}"
    )


def test_a_total_does_not_reset():
    assert sentence(window=Window.TOTAL, used=10 * USD, limit=10 * USD, resets_at=None) == (
        f"Your total limit of $10.00 is used up: $10.00 is spent. It does not reset. {ASK}"
    )


def test_the_contact_is_the_deployments_own():
    assert sentence(contact="it@example.org").endswith("If you need more, ask it@example.org.")


@pytest.mark.parametrize("meter", Meter)
@pytest.mark.parametrize("window", [Window.HOUR, Window.DAY, Window.WEEK, Window.MONTH])
def test_every_calendar_limit_says_its_number_and_its_reset(meter, window):
    text = sentence(meter=meter, window=window, used=7 * USD, limit=7 * USD)
    assert format_amount(meter, 7 * USD) in text
    assert meter is Meter.CONCURRENT or RESET in text


def test_a_model_that_is_not_allowed_says_which_are():
    policy = Policy("student", "Student", allow=("openai/*", "google/*"))
    assert model_not_allowed_sentence("anthropic/claude", policy) == (
        'The model "anthropic/claude" is not allowed by your policy "Student". It allows openai/*, google/*. Choose '
        "another model, or ask your administrator."
    )


def test_a_model_that_is_denied_where_all_others_are_allowed():
    both = Policy("p", "P", allow=("a/*",), deny=("*:online",))
    assert "It allows" not in model_not_allowed_sentence("a/b:online", both)
    assert "It allows a/*." in model_not_allowed_sentence("c/b:online", both)
    assert model_not_allowed_sentence("a/b:online", Policy("p", "P", deny=("*:online",)), contact="IT") == (
        'The model "a/b:online" is not allowed by your policy "P". Choose another model, or ask IT.'
    )


def test_a_name_that_a_caller_made_up_is_shown_short_and_on_one_line():
    text = model_unknown_sentence("x\n\x1b" * 5000)
    assert '"' + "x" * 100 + '..."' in text
    assert "\n" not in text
    assert len(text) < 400
