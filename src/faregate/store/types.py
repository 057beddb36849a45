"""Column types that keep the same value exactly on PostgreSQL and on SQLite."""

import json
import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from sqlalchemy import BigInteger, DateTime, Dialect, Numeric, Text
from sqlalchemy.types import TypeDecorator, TypeEngine

from faregate.records import PICO

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_PICO_PER_DOLLAR = 10**12
_COMPACT = json.JSONEncoder(separators=(",", ":"))
_UNKEEPABLE = re.compile("[\0\ud800-\udfff]")


def microseconds_of(seconds: float) -> int:
    """`seconds` since the epoch in whole microseconds, nearest, but never rounded up into the next second.

    Calendar windows begin on whole seconds: rounding up could move a record into a window that was not charged.
    """
    return min(round(seconds * 1_000_000), (math.floor(seconds) + 1) * 1_000_000 - 1)


def pico_of(dollars: Decimal) -> int:
    """`dollars` in whole pico-dollars, nearest."""
    return int(dollars.quantize(PICO, rounding=ROUND_HALF_UP) * _PICO_PER_DOLLAR)


def compact(names: Sequence[str]) -> str:
    """A list of strings as `Names` keeps it."""
    return _COMPACT.encode(list(names))


def keepable(text: str) -> str:
    """`text` as a database keeps it: what it cannot keep (NUL, half a surrogate pair) becomes U+FFFD."""
    return _UNKEEPABLE.sub("\ufffd", text)


def kept(text: str | None) -> str | None:
    """`text` made `keepable`, where there is any."""
    return None if text is None else keepable(text)


class Instant(TypeDecorator[float]):
    """Seconds since the epoch, exact to the microsecond: TIMESTAMPTZ on PostgreSQL, whole microseconds on SQLite."""

    impl = BigInteger
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(DateTime(timezone=True))
        return dialect.type_descriptor(BigInteger())

    def process_bind_param(self, value: float | None, dialect: Dialect) -> datetime | int | None:
        if value is None:
            return None
        microseconds = microseconds_of(value)
        if dialect.name == "postgresql":
            return _EPOCH + timedelta(microseconds=microseconds)
        return microseconds

    def process_result_value(self, value: Any | None, dialect: Dialect) -> float | None:
        if value is None:
            return None
        microseconds = (value - _EPOCH) // _MICROSECOND if isinstance(value, datetime) else int(value)
        return microseconds / 1_000_000


class Money(TypeDecorator[Decimal]):
    """Dollars with twelve places: NUMERIC(24,12) on PostgreSQL; whole pico-dollars on SQLite, so that SUM is exact."""

    impl = BigInteger
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(Numeric(24, 12))
        return dialect.type_descriptor(BigInteger())

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> Decimal | int | None:
        if value is None:
            return None
        if dialect.name == "postgresql":
            return value.quantize(PICO, rounding=ROUND_HALF_UP)
        return pico_of(value)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> Decimal | None:
        if value is None or isinstance(value, Decimal):
            return value
        return Decimal(value).scaleb(-12)


class Words(TypeDecorator[str]):
    """Text as it came from somewhere else, made `keepable`.

    One such character in a name must not make a whole batch of records unwritable.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return kept(value)


class Names(TypeDecorator[tuple[str, ...]]):
    """A list of strings in its order, as compact JSON in text: equal lists are equal values, on both dialects."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Sequence[str] | None, dialect: Dialect) -> str | None:
        return None if value is None else compact(value)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> tuple[str, ...] | None:
        return None if value is None else tuple(json.loads(value))
