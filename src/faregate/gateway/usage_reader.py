"""Finds tokens and cost in the `usage` of an answer (contract with OpenRouter, section 2).

Numbers are taken as written, never through a float. What is negative, not finite or absurd counts as missing:
it must neither credit nor ruin anybody.
"""

from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import msgspec

MOST_TOKENS = 2**40
MOST_DOLLARS = Decimal(10_000)
"""More than any single request has ever cost: a figure above it is an error of the sender."""


class Usage(msgspec.Struct, frozen=True, gc=False):
    """What one answer used. `cost` is in dollars, with what the provider bills directly under BYOK; None if unknown."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    cost: Decimal | None


_Tokens = Annotated[int, msgspec.Meta(ge=0, le=MOST_TOKENS)]


class _PromptDetails(msgspec.Struct, frozen=True, gc=False):
    cached_tokens: _Tokens = 0


class _CompletionDetails(msgspec.Struct, frozen=True, gc=False):
    reasoning_tokens: _Tokens = 0


class _Sound(msgspec.Struct, frozen=True, gc=False):
    """A usage with nothing odd about it, as nearly all are: it is checked while it is decoded, at half the work."""

    prompt_tokens: _Tokens
    completion_tokens: _Tokens
    total_tokens: _Tokens
    cost: Any
    is_byok: bool = False
    prompt_tokens_details: _PromptDetails = _PromptDetails()
    completion_tokens_details: _CompletionDetails = _CompletionDetails()


_sound_decoder = msgspec.json.Decoder(_Sound, float_hook=Decimal)
_decoder = msgspec.json.Decoder(float_hook=Decimal)

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, InvalidOperation, RecursionError)
"""What decoding raises: not JSON, broken letters, an exponent beyond those of decimals, nested without end."""


def read_usage(raw: msgspec.Raw | bytes) -> Usage | None:
    """The usage that a raw JSON value describes; None when it has no sound token counts."""
    try:
        sound = _sound_decoder.decode(raw)
    except msgspec.ValidationError:
        return _read_by_field(raw)
    except _UNREADABLE:
        return None
    if sound.is_byok:
        return _read_by_field(raw)
    return Usage(
        sound.prompt_tokens,
        sound.completion_tokens,
        sound.total_tokens,
        sound.prompt_tokens_details.cached_tokens,
        sound.completion_tokens_details.reasoning_tokens,
        _dollars(sound.cost),
    )


def _read_by_field(raw: msgspec.Raw | bytes) -> Usage | None:
    """What can be used of it, each field for itself: one that is nonsense says nothing of the others."""
    try:
        value = _decoder.decode(raw)
    except _UNREADABLE:
        return None
    if not isinstance(value, dict):
        return None
    prompt = _tokens(value.get("prompt_tokens"))
    completion = _tokens(value.get("completion_tokens"))
    if prompt is None or completion is None:
        return None
    total = _tokens(value.get("total_tokens"))
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion if total is None else total,
        cached_tokens=_detail(value, "prompt_tokens_details", "cached_tokens"),
        reasoning_tokens=_detail(value, "completion_tokens_details", "reasoning_tokens"),
        cost=_cost(value),
    )


def _cost(usage: dict[object, object]) -> Decimal | None:
    cost = _dollars(usage.get("cost"))
    if cost is None or usage.get("is_byok") is not True:
        return cost
    details = usage.get("cost_details")
    upstream = _dollars(details.get("upstream_inference_cost")) if isinstance(details, dict) else None
    # Under BYOK the provider's own bill is the larger part; without it the cost is not known.
    return None if upstream is None else cost + upstream


def _detail(usage: dict[object, object], group: str, name: str) -> int:
    details = usage.get(group)
    return (_tokens(details.get(name)) or 0) if isinstance(details, dict) else 0


def _tokens(value: object) -> int | None:
    if type(value) is int:
        return value if 0 <= value <= MOST_TOKENS else None
    # The range first: to write out 1e99999999 as an integer would take for ever.
    if not isinstance(value, Decimal) or not value.is_finite() or not 0 <= value <= MOST_TOKENS:
        return None
    return int(value) if value == int(value) else None


def _dollars(value: object) -> Decimal | None:
    if type(value) is int:
        value = Decimal(value)
    if not isinstance(value, Decimal):
        return None
    return value if value.is_finite() and 0 <= value <= MOST_DOLLARS else None
