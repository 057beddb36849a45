"""How the admin API writes and reads times, and writes money."""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from faregate.store.types import microseconds_of

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_YEAR_10000 = 253_402_300_800
_SECONDS = re.compile(r"[0-9]{1,11}(\.[0-9]{1,9})?")
_LOST_PLUS = re.compile(r" (?=[0-9]{2}:?[0-9]{2}$)")


def instant(seconds: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC, exact to the microsecond."""
    moment = _EPOCH + timedelta(microseconds=microseconds_of(seconds))
    return moment.replace(tzinfo=None).isoformat() + "Z"


def seconds_of(value: object) -> float:
    """Seconds since the epoch of an ISO 8601 date or time (without a zone it is UTC), or of such seconds.

    Raises ValueError with a sentence.
    """
    text = str(value).strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    if "T" in text:
        # The + of +01:00 is a space where somebody forgot to quote it in the address.
        text = _LOST_PLUS.sub("+", text)
    try:
        moment = datetime.fromisoformat(text)
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        seconds = -1.0
    if not 0 <= seconds < _YEAR_10000:
        raise ValueError(
            "it should be a date or time such as 2026-11-30 or 2026-11-30T08:00:00Z, or seconds since 1970"
        )
    return seconds


def dollars(amount: Decimal) -> str:
    """Dollars as a plain decimal string, without an exponent and without zeros at the end."""
    return format(amount.normalize(), "f")
