"""Long lists in parts: databases bound the values that one statement may have."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

VALUES = 400
"""SQLite took 999 values at most before 3.32; a person is found by two."""

T = TypeVar("T")


def chunks(values: Sequence[T]) -> Iterator[Sequence[T]]:
    """`values` in their order, at most `VALUES` at a time."""
    for start in range(0, len(values), VALUES):
        yield values[start : start + VALUES]
