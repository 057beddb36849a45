"""Claims and charges that differ from one request to the next in nothing but a few amounts: forms, and what fills them.

All requests of a person under the same rules touch the same counters with the same limits in the same order. That is
the form: whoever makes claims or charges remembers it, and an engine may remember what it has worked out from it.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar, overload

from faregate.ledger.port import Claim, Counter


class Ask(NamedTuple):
    """What a claim asks: `fixed` plus `per_output_token` for each token of the cap."""

    fixed: int
    per_output_token: int = 0


class ClaimLine(NamedTuple):
    """A claim, but for what it asks: that is at `place` of what the request asks."""

    counter: Counter
    place: int
    limit: int | None
    enforce: bool


class ChargeLine(NamedTuple):
    """A charge, but for its amount: that is at `place` of the amounts of the record."""

    counter: Counter
    place: int


Line = TypeVar("Line", ClaimLine, ChargeLine)
Value = TypeVar("Value")
Item = TypeVar("Item")


class Form(Generic[Line]):
    """Lines to fill in. `places` are those that they name, each once."""

    __slots__ = ("lines", "packed", "places")

    def __init__(self, lines: Iterable[Line]) -> None:
        self.lines: tuple[Line, ...] = tuple(lines)
        self.places: tuple[int, ...] = tuple(dict.fromkeys(line.place for line in self.lines))
        self.packed: Any = None
        """What an engine has worked out from these lines. It is here to be forgotten together with them."""


class _Filled(Sequence[Item], Generic[Line, Value, Item]):
    """A form and the values at its places: a sequence of what the lines come to."""

    __slots__ = ("_values", "form")

    def __init__(self, form: Form[Line], values: Sequence[Value]) -> None:
        """`values` may have more of them than the form names."""
        self.form: Form[Line] = form
        self._values = values

    def named(self) -> list[Value]:
        """The values that the form names, in the order of its places."""
        values = self._values
        return [values[place] for place in self.form.places]

    def __len__(self) -> int:
        return len(self.form.lines)

    def __iter__(self) -> Iterator[Item]:
        return map(self._item, self.form.lines)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self._item(line) for line in self.form.lines[index]]
        return self._item(self.form.lines[index])

    @abstractmethod
    def _item(self, line: Line) -> Item:
        """What `line` comes to with its value."""


class Claims(_Filled[ClaimLine, Ask, Claim]):
    """The claims of one request."""

    __slots__ = ()

    @classmethod
    def of(cls, claims: Sequence[Claim]) -> "Claims":
        """`claims`, on a form of their own if they have none."""
        if isinstance(claims, cls):
            return claims
        lines = [ClaimLine(claim.counter, place, claim.limit, claim.enforce) for place, claim in enumerate(claims)]
        return cls(Form(lines), [Ask(claim.fixed, claim.per_output_token) for claim in claims])

    def _item(self, line: ClaimLine) -> Claim:
        return Claim(line.counter, *self._values[line.place], line.limit, line.enforce)


class Charges(_Filled[ChargeLine, int, tuple[Counter, int]]):
    """The charges of one request."""

    __slots__ = ()

    @classmethod
    def of(cls, charges: Sequence[tuple[Counter, int]]) -> "Charges":
        """`charges`, on a form of their own if they have none."""
        if isinstance(charges, cls):
            return charges
        lines = [ChargeLine(counter, place) for place, (counter, _) in enumerate(charges)]
        return cls(Form(lines), [amount for _, amount in charges])

    def _item(self, line: ChargeLine) -> tuple[Counter, int]:
        return line.counter, self._values[line.place]
