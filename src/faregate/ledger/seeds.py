"""What counters start from when a shared ledger has none: sums of records, each counted once, by its era.

An era is a number that only grows and that the database gives out. Every charge is made in an era; the counters of a
shape that was learned in era N start from the records of all eras before N, and everything charged from N on is added
as it happens. The database refuses records of an era that is over (`Store.write`), so the sum of the eras before N
is the same whoever adds it up, and whenever.
"""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from faregate.ledger.port import Counter
from faregate.policy.rulebook import Shape


class Seed(NamedTuple):
    """What was charged to `counter`: in all, or, where it is a sliding minute, by one request."""

    counter: Counter
    amount: int
    request_id: str = ""
    admitted_at: float = 0.0


class Records(Protocol):
    """The records of the database, as far as counters start from them. Raises `RecordsAway` while it is away."""

    async def next_era(self, above: int) -> int:
        """Begin a new era, after which records of earlier ones are refused; its number.

        It is more than `above`, which the ledger had: a database that was restored from a backup, or is another one,
        may not have come so far.
        """
        ...

    async def charged(self, shapes: Iterable[Shape], era: int, now: float) -> list[Seed]:
        """What records of eras before `era` charged to the counters of `shapes` that are live around `now`.

        Live are the windows that hold the moments from a minute before to a minute after `now` (epoch seconds), so
        that nodes whose clocks differ a little find theirs. Counters that nothing was charged to are left out. None
        for `concurrent`: a slot is not spent.
        """
        ...


class RecordsAway(Exception):
    """The records cannot be read at the moment; the message says why."""
