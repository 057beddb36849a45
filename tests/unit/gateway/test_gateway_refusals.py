"""What OpenRouter's errors become for the person, and what they tell administrators only."""

import json

import msgspec
import pytest

from faregate.gateway.refusals import refusal_of

SECRETS = ("openrouter.ai/settings", "openrouter.ai/workspaces", "user_2abcDEF", "credits", "sk-or-v1")


def refused(status: int, error: object, retry_after: str | None = None) -> "tuple[int, str, str | None, str]":
    """Status, message, Retry-After and the administrators' reason of an upstream error."""
    raw = json.dumps(error).encode()
    answer = refusal_of(status, msgspec.Raw(raw), raw, retry_after, "the help desk")
    return answer.status, answer.message, answer.headers.get("retry-after"), answer.reason or ""


@pytest.mark.parametrize(
    ("status", "error", "shown"),
    [
        (401, {"message": "User not found.", "code": 401}, 502),
        (
            402,
            {"message": "Insufficient credits. Add more using https://openrouter.ai/settings/credits", "code": 402},
            402,
        ),
        (
            402,
            {
                "message": "This request requires more credits, or fewer max_tokens. You requested up to 65536 tokens, "
                "but can only afford 30104. To increase, visit https://openrouter.ai/settings/credits and upgrade",
                "code": 402,
                "metadata": {"provider_name": None},
            },
            402,
        ),
        (
            403,
            {
                "message": "Key limit exceeded (total limit). Manage it using https://openrouter.ai/settings/keys",
                "code": 403,
            },
            403,
        ),
        (403, {"message": "Workspace monthly budget of $500.00 exceeded. Contact your org admin.", "code": 403}, 403),
    ],
)
def test_what_is_about_our_account_is_neutral_for_the_person_and_whole_for_administrators(
    status: int, error: dict[str, object], shown: int
) -> None:
    code, message, _, reason = refused(status, error)
    assert code == shown
    assert "the help desk" in message
    assert not any(secret in message for secret in SECRETS)
    assert str(error["message"]) in reason
    raw = json.dumps(error).encode()
    assert refusal_of(status, msgspec.Raw(raw), raw, None, "x").code == "upstream_account"


def test_moderation_is_about_the_request_and_says_so() -> None:
    error = {
        "message": "The input was flagged",
        "code": 403,
        "metadata": {"reasons": ["violence"], "flagged_input": "hit ... hard", "provider_name": "OpenAI"},
    }
    code, message, _, reason = refused(403, error)
    assert (code, message) == (403, "The input was flagged")
    # The person's own words belong to nobody else.
    assert "hit" not in reason


def test_pages_of_our_account_and_ids_are_removed_from_any_message() -> None:
    error = {
        "message": "No endpoints found matching your data policy (Free model training). "
        "Configure: https://openrouter.ai/settings/privacy. Your id is user_2abcDEFghi.",
        "code": 404,
    }
    code, message, _, _ = refused(404, error)
    assert code == 404
    assert "No endpoints found" in message
    assert not any(secret in message for secret in SECRETS)


def test_a_busy_provider_is_named_and_retry_after_is_kept() -> None:
    error = {
        "message": "Provider returned error",
        "code": 429,
        "metadata": {
            "raw": "x is rate-limited upstream, add your own key: https://openrouter.ai/settings/integrations",
            "provider_name": "Google AI Studio",
            "limit_source": "upstream_provider_shared_pool",
        },
    }
    code, message, retry, reason = refused(429, error, "1")
    assert (code, retry) == (429, "1")
    assert "Google AI Studio" in message
    assert not any(secret in message for secret in SECRETS)
    assert "upstream_provider_shared_pool" in reason


def test_the_in_flight_budget_is_back_pressure() -> None:
    error = {
        "message": "This request would exceed your available credits",
        "code": 402,
        "metadata": {"reason": "in_flight_budget_exhausted", "limit_source": "openrouter_in_flight_budget"},
    }
    code, message, retry, _ = refused(402, error, "3")
    assert (code, retry) == (503, "3")
    assert "credits" not in message


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"code": 504, "message": "error code: 524\n"}, 504),
        ({"code": "429", "message": "slow"}, 429),
        ({"code": "server_error", "message": "oops"}, 502),
        ({"code": 200, "message": "odd"}, 502),
        ({"message": "no code"}, 502),
        ("just text", 502),
        (["list"], 502),
        ({"code": 500, "message": "x", "metadata": {"reasons": 5}}, 500),
        ({"code": {"a": 1}, "message": "x"}, 502),
    ],
)
def test_an_error_inside_a_success_gets_a_status_of_its_own(error: object, status: int) -> None:
    code, message, _, _ = refused(200, error)
    assert code == status
    assert message


def test_an_error_page_is_not_shown() -> None:
    answer = refusal_of(524, None, b"<html><title>524</title></html>", None, "the help desk")
    assert answer.status == 524
    assert "<" not in answer.message


@pytest.mark.parametrize("value", ["Wed, 21 Oct 2026 07:28:00 GMT", "-1", "1.5", "99999999", "1\r\nx: y"])
def test_only_a_plain_delay_is_passed_on(value: str) -> None:
    assert refused(503, {"message": "later", "code": 503}, value)[2] is None


def test_what_may_quote_the_prompt_is_not_kept_for_anybody() -> None:
    reason = refused(
        400, {"message": "Invalid input: my secret", "code": 400, "metadata": {"error_type": "invalid_prompt"}}
    )[3]
    assert reason == "upstream 400 (invalid_prompt)"


def test_a_word_that_only_looks_like_an_account_stays() -> None:
    assert refused(400, {"message": "Not a user-friendly format", "code": 400})[1] == "Not a user-friendly format"
