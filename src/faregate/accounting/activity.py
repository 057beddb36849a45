"""What OpenRouter says was spent on a day: `GET /activity?date=` (contract openrouter, section 1)."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

import msgspec

from faregate.accounting.generation import AskFailed

DAYS = 30
"""OpenRouter tells of so many completed UTC days."""

MOST_BYTES = 16 * 1024 * 1024

_MOST_DOLLARS = Decimal(10**9)
_MOST_REQUESTS = 2**53


@dataclass(frozen=True, slots=True)
class Activity:
    """One model at one endpoint on one day. `model` is its id, `permaslug` the dated name of the very version.

    `cost` is in dollars, with what the provider billed directly under BYOK, as in our records.
    """

    model: str
    permaslug: str
    provider: str
    requests: int
    cost: Decimal


# Floats arrive as the text on the wire, so that no cent passes through binary.
_decoder = msgspec.json.Decoder(dict[str, Any], float_hook=Decimal)


def activity_path(day: date) -> bytes:
    """What to ask for, below the base URL."""
    return b"/activity?date=" + day.isoformat().encode()


def parse_activity(body: bytes, day: date) -> list[Activity]:
    """Read the answer about `day`.

    Raises `AskFailed` when anything about that day cannot be read: a row left out would look like a difference.
    """
    try:
        data = _decoder.decode(body).get("data")
    except (msgspec.MsgspecError, RecursionError) as error:
        raise AskFailed("OpenRouter's answer about its activity is not a JSON object") from error
    if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
        raise AskFailed("OpenRouter's answer about its activity has no list of rows")
    # A time has been seen behind the date.
    return [_row(row) for row in data if _text(row, "date")[:10] == day.isoformat()]


def _row(row: Mapping[str, Any]) -> Activity:
    model = _text(row, "model")
    return Activity(
        model=model,
        permaslug=model if row.get("model_permaslug") is None else _text(row, "model_permaslug"),
        provider=_text(row, "provider_name"),
        requests=int(_number(row, "requests", _MOST_REQUESTS)),
        cost=_number(row, "usage", _MOST_DOLLARS) + _number(row, "byok_usage_inference", _MOST_DOLLARS, absent=0),
    )


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value:
        raise AskFailed(f"OpenRouter's answer about its activity has a row without {name}")
    return value


def _number(row: Mapping[str, Any], name: str, most: Decimal | int, absent: int | None = None) -> Decimal:
    value = absent if row.get(name) is None else row[name]
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise AskFailed(f"OpenRouter's answer about its activity has a row without {name}")
    number = Decimal(value)
    if not number.is_finite() or abs(number) > most:
        raise AskFailed(f"OpenRouter's answer about its activity has a row whose {name} cannot be right")
    return number
