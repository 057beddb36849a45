"""Dollars as people and JSON write them, and as counters count them. No float ever holds money."""

import re
from decimal import Context, Decimal, localcontext
from math import ceil

from faregate.policy.model import NANO

MAX_COUNT = 2**53 - 1
"""The largest amount on a counter. Above it the doubles of Redis' Lua are no longer exact integers."""

_MOST_CHARACTERS = 64
_NANO = Decimal(NANO)
_EXACT = Context(prec=2 * _MOST_CHARACTERS)
_PLAIN = re.compile(r"[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?")


def parse_usd(value: object) -> int:
    """Nano-dollars of an amount in dollars, written as a string or as a JSON number, exactly.

    Raises ValueError, with a sentence that continues "the amount ...", for anything that is not a plain number
    of dollars from 0 to 2^53 - 1 nano-dollars with at most nine decimals.
    """
    # A float is read by its shortest decimal spelling, which is what stood in the JSON; it is never computed with.
    text = "" if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal) else str(value)
    if text.startswith("-"):
        raise ValueError("must not be negative")
    if len(text) > _MOST_CHARACTERS or not _PLAIN.fullmatch(text):
        raise ValueError('must be a number of dollars, like "2.50"')
    with localcontext(prec=2 * _MOST_CHARACTERS):
        nano = Decimal(text) * NANO
        if nano > MAX_COUNT:
            raise ValueError(f"must not be above {format_usd(MAX_COUNT)}")
        whole = int(nano)
        if whole != nano:
            raise ValueError("must not have more than nine decimals of a dollar")
    return whole


def nano_of(dollars: Decimal) -> int:
    """Nano-dollars of `dollars`, rounded up: what a cost is on a counter."""
    return ceil(_EXACT.multiply(dollars, _NANO))


def usd_decimal(nano: int) -> str:
    """Nano-dollars as a plain decimal string of dollars for JSON: "2.5", "0", "0.000000001"."""
    sign = "-" if nano < 0 else ""
    whole, rest = divmod(abs(nano), NANO)
    decimals = f"{rest:09d}".rstrip("0")
    return f"{sign}{whole}.{decimals}" if decimals else f"{sign}{whole}"


def format_usd(nano: int) -> str:
    """Nano-dollars for people: "$2.50", "$2.4987", "$1,200.00". At least two decimals, no more than needed."""
    sign = "-" if nano < 0 else ""
    whole, rest = divmod(abs(nano), NANO)
    return f"{sign}${whole:,}.{f'{rest:09d}'.rstrip('0'):0<2}"
