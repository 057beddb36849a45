"""What was spent before a counter existed: where a counter that nobody has seen yet starts from."""

from typing import Protocol

from faregate.ledger.port import Counter


class Baseline(Protocol):
    """The charges of every record settled so far, those on their way to the database included.

    The ledger asks once, when it first meets a counter, and again for one that it has forgotten since: so a limit
    added in mid-window counts what was spent before it, and a counter whose window is over need not be kept, not
    even if the clock may be set back to it.
    """

    def used(self, counter: Counter) -> int:
        """What records have charged to a calendar or `total` counter (nano-dollars, tokens or requests)."""
        ...

    def recent(self, counter: Counter, since: float) -> list[tuple[float, int]]:
        """`(admitted_at, amount)` of the records on a sliding counter admitted after `since` (epoch seconds)."""
        ...
