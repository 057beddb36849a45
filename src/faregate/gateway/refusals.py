"""What OpenRouter's refusals become for the caller: status, sentence, and what stays with the administrators.

The table is the contract with OpenRouter, section 5. What is about our account there (its key, its credits, its
limits) is no business of the person who asks: they read a neutral sentence, the administrator reads the original.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

import msgspec

from faregate.gateway.errors import ApiError
from faregate.gateway.sse import text_of

_ACCOUNT_PAGES = re.compile(
    r"[^.!?\n]*https?://openrouter\.ai/(?:settings|workspaces|activity|credits|docs)[^\s]*[^.!?\n]*[.!?]?"
)
_ACCOUNT_IDS = re.compile(r"\b(?:user_|org_|sk-or-)[A-Za-z0-9-]{6,}")
_KEYS = re.compile(r"\bsk-[A-Za-z0-9-]{6,}")
_LONGEST_MESSAGE = 1_000


class _Metadata(msgspec.Struct):
    limit_source: str | None = None
    reason: str | None = None
    reasons: list[str] | None = None
    patterns: list[str] | None = None
    provider_name: str | None = None
    error_type: str | None = None
    flagged_input: str | None = None


class _Error(msgspec.Struct):
    message: str | None = None
    code: int | str | None = None
    metadata: _Metadata | None = None


class Then(Enum):
    """What the gateway does about it, in the words of the documentation."""

    TELL = "passed on"
    OUT = "the key is left out, another one is tried"
    REST = "the key rests, another one is tried"
    WAIT = "waits in line"


@dataclass(frozen=True, slots=True)
class Rule:
    """What an error of OpenRouter becomes. `status` and `code` are the caller's; None: the error's own."""

    name: str
    status: int | None
    code: str | None
    then: Then
    applies: Callable[[int, _Error, bool], bool] = field(repr=False)
    """Of status, error, and whether there is a `Retry-After`."""


def _reason_is(error: _Error, reason: str) -> bool:
    return error.metadata is not None and error.metadata.reason == reason


def _in_flight(status: int, error: _Error, _delayed: bool) -> bool:
    return _reason_is(error, "in_flight_budget_exhausted") or (
        error.metadata is not None
        and error.metadata.limit_source == "openrouter_in_flight_budget"
        and not _reason_is(error, "weight_exceeds_budget")
    )


def _about_content(status: int, error: _Error, _delayed: bool) -> bool:
    # A 403 about the content of this very request is for the person; any other is about the key.
    metadata = error.metadata
    return (
        status == 403
        and metadata is not None
        and bool(
            metadata.reasons
            or metadata.patterns
            or metadata.flagged_input
            or metadata.error_type in {"content_policy_violation", "refusal"}
        )
    )


ACCOUNT = "upstream_account"
BUSY = "upstream_busy"

TABLE = (
    Rule("no room in flight", 503, BUSY, Then.WAIT, _in_flight),
    Rule(
        "402 larger than the budget in flight",
        402,
        ACCOUNT,
        Then.TELL,
        lambda status, error, _: status == 402 and _reason_is(error, "weight_exceeds_budget"),
    ),
    Rule("401", 502, ACCOUNT, Then.OUT, lambda status, *_: status == 401),
    Rule("402", 402, ACCOUNT, Then.OUT, lambda status, *_: status == 402),
    Rule("403 about content", 403, None, Then.TELL, _about_content),
    Rule("403", 403, ACCOUNT, Then.OUT, lambda status, *_: status == 403),
    Rule("429 with Retry-After", 429, None, Then.REST, lambda status, _, delayed: status == 429 and delayed),
    Rule("any other", None, None, Then.TELL, lambda *_: True),
)
"""What every error that is an answer of OpenRouter becomes: the first that applies. `docs/upstream.md` has the same."""


@dataclass(slots=True)
class Refusal(ApiError):
    """An error that OpenRouter answered with: what is `then` done, and its `Retry-After`, in seconds."""

    then: Then = Then.TELL
    delay: int | None = None


def refusal_of(
    status: int, error: msgspec.Raw | None, raw_body: bytes, retry_after: str | None, contact: str
) -> Refusal:
    """The caller's error for an upstream error: HTTP `status`, the value of the body's `error`, the whole body.

    With a `status` of 200 (an error inside a success) the error's own code decides.
    """
    parsed = _parse(error)
    code = _int_code(parsed.code)
    if status < 400:
        status = code if code is not None and 400 <= code <= 599 else 502
    delay = int(retry_after) if retry_after is not None and _is_delay(retry_after) else None
    rule = next(rule for rule in TABLE if rule.applies(status, parsed, delay is not None))
    reason = _reason(status, parsed, rule.code == ACCOUNT)
    if rule.code == BUSY:
        return busy(2 if delay is None else delay, reason, delay)
    # What concerns our account has no time at which the caller should come again.
    told = {} if delay is None or rule.code == ACCOUNT else {"retry-after": str(delay)}
    message = _readable(parsed, status)
    if rule.code == ACCOUNT:
        message = (
            "The AI service does not take requests from us at the moment. This is not about you or your quota: "
            f"please tell {contact}."
        )
    return Refusal(
        # 401 would say that the caller's key is wrong, and theirs is not.
        rule.status or status,
        message,
        "upstream_error",
        rule.code or _slug(parsed, status),
        headers=told,
        reason=reason,
        then=rule.then,
        delay=delay,
    )


def busy(retry_after: int, reason: str, delay: int | None = None) -> Refusal:
    """OpenRouter runs as much for our account as it will. `retry_after`, in seconds, is what the caller is told."""
    return Refusal(
        503,
        "The AI service is at the limit of what it runs for us at the same time. Please try again in a moment.",
        "upstream_error",
        BUSY,
        headers={"retry-after": str(retry_after)},
        reason=reason,
        then=Then.WAIT,
        delay=delay,
    )


def _parse(error: msgspec.Raw | None) -> _Error:
    if error is None:
        return _Error()
    try:
        return msgspec.json.decode(error, type=_Error)
    except msgspec.DecodeError:
        pass
    try:
        fields = msgspec.json.decode(error, type=dict[str, msgspec.Raw])
    except msgspec.DecodeError:
        # `{"error": "text"}` is a form, too.
        return _Error(message=text_of(error))
    # Metadata of an unknown shape must not hide the message.
    code = fields.get("code")
    return _Error(
        message=text_of(fields.get("message")),
        code=int(bytes(code)) if code is not None and bytes(code).isdigit() else text_of(code),
    )


def _reason(status: int, error: _Error, about_account: bool) -> str:
    """What administrators read. The text of an error may quote the prompt, so only that about the account is kept."""
    metadata = error.metadata or _Metadata()
    details = [error.code, metadata.error_type, metadata.limit_source, metadata.provider_name]
    told = ", ".join(str(detail)[:100] for detail in details if detail is not None and detail != status)
    reason = f"upstream {status}" + (f" ({told})" if told else "")
    if not about_account or not error.message:
        return reason
    return f"{reason}: {_KEYS.sub('…', error.message[:_LONGEST_MESSAGE])}"


def _int_code(code: int | str | None) -> int | None:
    if isinstance(code, str):
        return int(code) if code.isascii() and code.isdigit() and len(code) == 3 else None
    return code


def _is_delay(value: str) -> bool:
    return value.isascii() and value.isdigit() and len(value) <= 6


def _readable(error: _Error, status: int) -> str:
    message = _ACCOUNT_PAGES.sub("", (error.message or "")[:_LONGEST_MESSAGE])
    message = _ACCOUNT_IDS.sub("…", message).strip()
    if not message:
        return f"The AI service answered with an error (HTTP {status}). Please try again in a moment."
    provider = error.metadata.provider_name if error.metadata is not None else None
    if message == "Provider returned error":
        who = provider or "The provider of this model"
        if status == 429:
            return f"{who} is busy at the moment. Please try again shortly, or choose another model."
        return f"{who} answered with an error (HTTP {status}). Please try again, or choose another model."
    return message


def _slug(error: _Error, status: int) -> str:
    if error.metadata is not None and error.metadata.error_type:
        return error.metadata.error_type
    return f"upstream_{status}"
