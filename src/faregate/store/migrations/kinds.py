"""What columns are made of, in every revision: never to be changed, as databases were made of it."""

from typing import Any

from sqlalchemy import BigInteger, DateTime, Integer, Numeric
from sqlalchemy.types import TypeEngine


def instant() -> TypeEngine[Any]:
    """A moment: TIMESTAMPTZ on PostgreSQL, microseconds since the epoch on SQLite."""
    return BigInteger().with_variant(DateTime(timezone=True), "postgresql")


def money() -> TypeEngine[Any]:
    """Dollars: NUMERIC(24,12) on PostgreSQL, pico-dollars on SQLite."""
    return BigInteger().with_variant(Numeric(24, 12), "postgresql")


def number() -> TypeEngine[Any]:
    """A key that counts on by itself, which SQLite does in INTEGER alone."""
    return BigInteger().with_variant(Integer, "sqlite")
