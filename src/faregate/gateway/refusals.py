"""What OpenRouter's refusals become for the caller: status, sentence, and what stays with the administrators.

The table is the contract with OpenRouter, section 5. What is about our account there (its key, its credits, its
limits) is no business of the person who asks: they read a neutral sentence, the administrator reads the original.
"""

import re

import msgspec

from faregate.gateway.errors import ApiError
from faregate.gateway.sse import text_of

_ACCOUNT_PAGES = re.compile(
    r"[^.!?\n]*https?://openrouter\.ai/(?:settings|workspaces|activity|credits|docs)[^\s]*[^.!?\n]*[.!?]?"
)
_ACCOUNT_IDS = re.compile(r"\b(?:user_|org_|sk-or-)[A-Za-z0-9-]{6,}")
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


def refusal_of(
    status: int, error: msgspec.Raw | None, raw_body: bytes, retry_after: str | None, contact: str
) -> ApiError:
    """The caller's error for an upstream error: HTTP `status`, the value of the body's `error`, the whole body.

    With a `status` of 200 (an error inside a success) the error's own code decides.
    """
    parsed = _parse(error)
    code = _int_code(parsed.code)
    if status < 400:
        status = code if code is not None and 400 <= code <= 599 else 502
    about_account = _about_account(status, parsed)
    reason = _reason(status, parsed, about_account)
    headers = {"retry-after": retry_after} if retry_after is not None and _is_delay(retry_after) else {}
    if _in_flight(parsed.metadata):
        return ApiError(
            503,
            "The AI service is at the limit of what it runs for us at the same time. Please try again in a moment.",
            "upstream_error",
            "upstream_busy",
            headers={"retry-after": "2"} | headers,
            reason=reason,
        )
    if about_account:
        return ApiError(
            # 401 would say that the caller's key is wrong, and theirs is not.
            502 if status == 401 else status,
            "The AI service does not take requests from us at the moment. This is not about you or your quota: "
            f"please tell {contact}.",
            "upstream_error",
            "upstream_account",
            reason=reason,
        )
    return ApiError(
        status, _readable(parsed, status), "upstream_error", _slug(parsed, status), headers=headers, reason=reason
    )


def is_account_problem(error: ApiError) -> bool:
    """Whether administrators should hear of it now: every request will fail alike."""
    return error.code == "upstream_account"


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
    return f"{reason}: {error.message[:_LONGEST_MESSAGE]}" if about_account and error.message else reason


def _int_code(code: int | str | None) -> int | None:
    if isinstance(code, str):
        return int(code) if code.isascii() and code.isdigit() and len(code) == 3 else None
    return code


def _is_delay(value: str) -> bool:
    return value.isascii() and value.isdigit() and len(value) <= 6


def _in_flight(metadata: _Metadata | None) -> bool:
    return metadata is not None and metadata.limit_source == "openrouter_in_flight_budget"


def _about_account(status: int, error: _Error) -> bool:
    if status in (401, 402):
        return True
    if status != 403:
        return False
    metadata = error.metadata
    # A 403 about the content of this very request is for the person; any other is about the key.
    return metadata is None or not (
        metadata.reasons
        or metadata.patterns
        or metadata.flagged_input
        or metadata.error_type in {"content_policy_violation", "refusal"}
    )


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
