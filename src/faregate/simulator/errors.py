"""Errors as OpenRouter writes them (contract, 3 and 5): before the answer, and in the stream."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

ACCOUNT = "user_2simulatorAccount0000000000"
"""The account id that OpenRouter puts on its errors; a gateway must not pass it on."""

JSON = b"application/json"
HTML = b"text/html; charset=UTF-8"

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """An HTTP answer that is an error."""

    status: int
    body: bytes
    headers: Headers = ()
    content_type: bytes = JSON


class Refused(Exception):
    """The request is answered with a problem before any model sees it."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.status)
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Subject:
    """What error bodies speak about. `text` is the last message: moderation quotes it."""

    model: str
    provider: str
    text: str = ""


def problem(
    status: int,
    message: str,
    metadata: dict[str, Any] | None = None,
    *,
    headers: Headers = (),
    account: bool = False,
) -> Problem:
    """An error in OpenRouter's envelope; `account` adds the account id."""
    error: dict[str, Any] = {"message": message, "code": status}
    if metadata is not None:
        error["metadata"] = metadata
    body: dict[str, Any] = {"error": error}
    if account:
        body["user_id"] = ACCOUNT
    return Problem(status, msgspec.json.encode(body), headers)


def refuse(status: int, message: str, metadata: dict[str, Any] | None = None) -> Refused:
    """The same, to be raised."""
    return Refused(problem(status, message, metadata))


def key_limit() -> Problem:
    """403: the key has used up its limit."""
    return problem(403, "Key limit exceeded (total limit). Manage it using https://openrouter.ai/settings/keys")


def _rate_limit(_: Subject) -> Problem:
    limits = {"X-RateLimit-Limit": "20", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1790000060000"}
    metadata = {"headers": limits, "provider_name": None}
    headers = tuple((name.lower().encode(), value.encode()) for name, value in limits.items())
    message = "Rate limit exceeded: free-models-per-min. "
    return problem(429, message, metadata, headers=headers, account=True)


def _upstream_rate_limit(subject: Subject, *, retry_after: bool) -> Problem:
    metadata: dict[str, Any] = {
        "raw": f"{subject.model} has no free capacity at the provider. Please try again shortly.",
        "provider_name": subject.provider,
        "is_byok": False,
        "provider_error_code": "429",
        "limit_source": "upstream_provider_shared_pool",
        "remedy_hint": "Try again shortly, add your own provider key, or route to another provider.",
    }
    if retry_after:
        metadata |= {"retry_after_seconds": 1, "retry_after_seconds_raw": 1, "headers": {"Retry-After": "1"}}
    headers: Headers = ((b"retry-after", b"1"),) if retry_after else ()
    return problem(429, "Provider returned error", metadata, headers=headers, account=True)


def _credits(_: Subject) -> Problem:
    message = (
        "This request requires more credits, or fewer max_tokens. You requested up to 16384 tokens, but can only "
        "afford 812. To increase, visit https://openrouter.ai/settings/credits and upgrade to a paid account"
    )
    metadata = {"limit_source": "openrouter_credits", "remedy_hint": "Add credits.", "provider_name": None}
    return problem(402, message, metadata, account=True)


def in_flight(retry_after: int = 2) -> Problem:
    """402: more runs for the account than it has credits for; `retry_after` in seconds."""
    message = (
        "This request would exceed your available credits given your current in-flight requests. "
        "Retry after in-flight requests settle, or add credits."
    )
    metadata = {
        "reason": "in_flight_budget_exhausted",
        "limit_source": "openrouter_in_flight_budget",
        "remedy_hint": "Wait for running requests to end, or add credits.",
    }
    return problem(402, message, metadata, headers=((b"retry-after", b"%d" % retry_after),), account=True)


def _weight(_: Subject) -> Problem:
    message = (
        "This request would exceed the in-flight budget of your account by itself. Lower max_tokens, or add credits."
    )
    metadata = {
        "reason": "weight_exceeds_budget",
        "limit_source": "openrouter_credits",
        "remedy_hint": "Lower max_tokens, or add credits.",
    }
    return problem(402, message, metadata, account=True)


def _no_credits(_: Subject) -> Problem:
    message = "Insufficient credits. Add more using https://openrouter.ai/settings/credits"
    return problem(402, message, {"limit_source": "openrouter_credits", "remedy_hint": "Add credits."}, account=True)


def _asked_to_wait(_: Subject) -> Problem:
    metadata = {"headers": {"Retry-After": "3"}, "provider_name": None}
    return problem(429, "Rate limit exceeded.", metadata, headers=((b"retry-after", b"3"),), account=True)


def _key_remaining(_: Subject) -> Problem:
    message = (
        "This request requires more credits, or fewer max_tokens. You requested up to 16384 tokens, but can only "
        "afford 90. To increase, visit https://openrouter.ai/settings/keys and create a key with a higher limit"
    )
    metadata = {"limit_source": "openrouter_key_limit", "remedy_hint": "Raise the key's limit.", "provider_name": None}
    return problem(402, message, metadata, account=True)


def _moderation(subject: Subject) -> Problem:
    text = subject.text
    flagged = text if len(text) <= 100 else f"{text[:48]}...{text[-49:]}"
    metadata = {
        "reasons": ["violence"],
        "flagged_input": flagged,
        "provider_name": subject.provider,
        "model_slug": subject.model,
    }
    message = f"{subject.model} requires moderation. Your input was flagged."
    return problem(403, message, metadata, account=True)


def _no_endpoints(_: Subject) -> Problem:
    message = (
        "No endpoints found matching your data policy (Free model training). "
        "Configure: https://openrouter.ai/settings/privacy"
    )
    return problem(404, message, account=True)


def _provider_error(status: int, error_type: str) -> Callable[[Subject], Problem]:
    def build(subject: Subject) -> Problem:
        metadata = {
            "raw": f"upstream answered {status}",
            "provider_name": subject.provider,
            "is_byok": False,
            "provider_error_code": str(status),
            "error_type": error_type,
        }
        return problem(status, "Provider returned error", metadata, account=True)

    return build


def _plain(status: int, message: str, error_type: str | None = None) -> Callable[[Subject], Problem]:
    metadata = {"error_type": error_type} if error_type else None
    return lambda _: problem(status, message, metadata, account=True)


def _page(status: int, title: str) -> Callable[[Subject], Problem]:
    page = f"<!DOCTYPE html>\n<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>\n"
    return lambda _: Problem(status, page.encode(), content_type=HTML)


def overloaded(subject: Subject) -> Problem:
    """503: nobody can serve the request now."""
    metadata = {"error_type": "provider_overloaded", "provider_name": subject.provider}
    message = "No provider can serve this request at the moment."
    return problem(503, message, metadata, headers=((b"retry-after", b"5"),), account=True)


_BEFORE: dict[str, Callable[[Subject], Problem]] = {
    "400": _plain(400, "The provider refused a parameter of this request.", "invalid_request"),
    "401": _plain(401, "User not found."),
    "402": _credits,
    "402-credits": _no_credits,
    "402-in-flight": lambda _: in_flight(),
    "402-key": _key_remaining,
    "402-weight": _weight,
    "403-key": lambda _: key_limit(),
    "403-moderation": _moderation,
    "404": _no_endpoints,
    "408": _plain(408, "Operation timed out. Please try again later."),
    "413": _plain(413, "Request payload too large"),
    "422": _plain(422, "Invalid argument"),
    "429": _rate_limit,
    "429-retry-after": _asked_to_wait,
    "429-upstream": lambda subject: _upstream_rate_limit(subject, retry_after=True),
    "429-upstream-bare": lambda subject: _upstream_rate_limit(subject, retry_after=False),
    "500": _plain(500, "Internal Server Error", "server"),
    "502": _provider_error(502, "provider_unavailable"),
    "502-html": _page(502, "502 Bad Gateway"),
    "503": overloaded,
    "504": _plain(504, "The provider did not answer in time.", "timeout"),
    "524": _page(524, "524 A timeout occurred"),
    "529": _provider_error(529, "provider_overloaded"),
}

ERROR_NAMES = tuple(_BEFORE)
"""What `[[error=...]]` can be."""


def before(name: str, subject: Subject) -> Problem:
    """The error of that name, instead of an answer."""
    return _BEFORE[name](subject)


def in_answer(provider: str, *, code_as_string: bool) -> dict[str, Any]:
    """The error object of an answer whose status is 200 already."""
    return {
        "code": "server_error" if code_as_string else 502,
        "message": f"Upstream error from {provider}: the worker went away.",
        "metadata": {"error_type": "provider_unavailable", "provider_name": provider},
    }
