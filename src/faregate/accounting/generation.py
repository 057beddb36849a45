"""What OpenRouter tells afterwards about one generation: `GET /generation?id=` (contract, section 4)."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec

MOST_TOKENS = 2**40
MOST_DOLLARS = Decimal(10_000)
"""More than any single request has ever cost: a larger figure is nonsense, and nonsense ruins nobody."""


class AskFailed(Exception):
    """OpenRouter could not be asked, or its answer could not be read. It says nothing about the generation."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One finished generation. `cost` is in dollars, with the provider's own bill under BYOK; None if not told.

    Tokens are counted by the model's own tokenizer, which is what is billed, or, where that is not told, as
    OpenRouter counts for all models alike. `model` may be a dated name that the catalogue does not list.
    """

    id: str | None = None
    cost: Decimal | None = None
    model: str | None = None
    provider: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    cancelled: bool | None = None
    finish_reason: str | None = None


# Floats arrive as the text on the wire, so that no cent passes through binary.
_decoder = msgspec.json.Decoder(dict[str, Any], float_hook=Decimal)


def parse_generation(body: bytes) -> Generation:
    """Read the answer of `GET /generation`. A figure that is negative or nonsense counts as not there.

    Raises `AskFailed` when the body is not JSON or has no `data` object.
    """
    try:
        data = _decoder.decode(body).get("data")
    except (msgspec.MsgspecError, RecursionError) as error:
        raise AskFailed("OpenRouter's answer about a generation is not a JSON object") from error
    if not isinstance(data, dict):
        raise AskFailed("OpenRouter's answer about a generation has no data")
    cancelled = data.get("cancelled")
    return Generation(
        id=_text(data, "id"),
        cost=_cost(data),
        model=_text(data, "model"),
        provider=_text(data, "provider_name"),
        prompt_tokens=_tokens(data, "native_tokens_prompt", "tokens_prompt"),
        completion_tokens=_tokens(data, "native_tokens_completion", "tokens_completion"),
        cached_tokens=_tokens(data, "native_tokens_cached"),
        reasoning_tokens=_tokens(data, "native_tokens_reasoning"),
        cancelled=cancelled if isinstance(cancelled, bool) else None,
        finish_reason=_text(data, "finish_reason"),
    )


def _cost(data: Mapping[str, Any]) -> Decimal | None:
    charged = _dollars(data, "total_cost")
    if charged is None:
        charged = _dollars(data, "usage")
    if charged is None or data.get("is_byok") is not True:
        return charged
    # Under BYOK the provider's own bill is the larger part (contract, section 2.1); without it the cost is not known.
    upstream = _dollars(data, "upstream_inference_cost")
    return None if upstream is None else charged + upstream


def _dollars(data: Mapping[str, Any], name: str) -> Decimal | None:
    value = data.get(name)
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        return None
    amount = Decimal(value)
    return amount if amount.is_finite() and 0 <= amount <= MOST_DOLLARS else None


def _tokens(data: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = data.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS:
            return value
    return None


def _text(data: Mapping[str, Any], name: str) -> str | None:
    value = data.get(name)
    return value if isinstance(value, str) and value else None
