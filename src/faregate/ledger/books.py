"""What one counter keeps in memory: a tally of what is used and held, or the entries of a sliding minute."""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, takewhile

from faregate.ledger.port import Balance

MINUTE_SECONDS = 60
"""How long an entry stays in a sliding window."""


class Tally:
    """A calendar, `total` or `concurrent` counter. `holds` is the number of live holds on it."""

    __slots__ = ("held", "holds", "used")

    def __init__(self, used: int) -> None:
        self.used = used
        self.held = 0
        self.holds = 0

    def balance(self, _at: float) -> Balance:
        return Balance(self.used, self.held)

    def hold(self, _request_id: str, amount: int, _at: float) -> None:
        self.held += amount
        self.holds += 1

    def charge(self, _request_id: str, amount: int, _at: float) -> None:
        self.used += amount

    def give_back(self, _request_id: str, amount: int) -> None:
        self.held -= amount
        self.holds -= 1


class _Entry:
    """One admitted request in a sliding window. `open` while its amount is a hold's, not yet a charge."""

    __slots__ = ("amount", "at", "open", "request_id")

    def __init__(self, at: float, request_id: str, amount: int, is_open: bool) -> None:
        self.at = at
        self.request_id = request_id
        self.amount = amount
        self.open = is_open


class Sliding:
    """An exact sliding minute: what was admitted at `t` counts until `t + 60`, held or charged, and then not at all.

    Entries are kept oldest first. An entry that is still held when its minute is over leaves like any other: a
    rate is about when requests were admitted, not about how long they run.

    Requests are judged in another order than they came, so an entry from after the moment that is asked about counts
    too, but not from more than a minute after: a clock that was set back has left that minute as well. What it left
    is forgotten, else a clock that was ahead for a moment would fill the minute for as long as it was ahead.
    """

    __slots__ = ("_entries", "_open", "held", "used")

    def __init__(self, charged: Iterable[tuple[float, int]] = ()) -> None:
        self._entries: deque[_Entry] = deque()
        self._open: dict[str, _Entry] = {}
        self.used = 0
        self.held = 0
        for at, amount in sorted(charged):
            self.charge("", amount, at)

    def balance(self, at: float) -> Balance:
        """What counts at `at` (epoch seconds), without forgetting anything."""
        used, held = self.used, self.held
        for entry in chain(self._over_at(at), self._ahead_of(at)):
            if entry.open:
                held -= entry.amount
            else:
                used -= entry.amount
        return Balance(used, held)

    def hold(self, request_id: str, amount: int, at: float) -> None:
        entry = _Entry(at, request_id, amount, is_open=True)
        self._open[request_id] = entry
        self._insert(entry)
        self.held += amount

    def charge(self, request_id: str, amount: int, at: float) -> None:
        """Let the entry of `request_id`, or a new one at `at`, count `amount` for the rest of its minute."""
        entry = self._open.pop(request_id, None)
        if entry is None:
            self._insert(_Entry(at, request_id, amount, is_open=False))
        else:
            self.held -= entry.amount
            entry.amount, entry.open = amount, False
        self.used += amount

    def give_back(self, request_id: str, _amount: int) -> None:
        entry = self._open.pop(request_id, None)
        if entry is not None:
            self.held -= entry.amount
            entry.amount, entry.open = 0, False

    def forget(self, before: float) -> None:
        """Drop the entries whose minute was over by `before` (epoch seconds)."""
        while self._entries and is_over(self._entries[0].at, before):
            self._drop(self._entries.popleft())

    def forget_ahead(self, now: float) -> None:
        """Drop the entries of a clock that was ahead and is at `now` (epoch seconds)."""
        while self._entries and is_ahead(self._entries[-1].at, now):
            self._drop(self._entries.pop())

    def is_empty(self) -> bool:
        return not self._entries

    def frees_at(self, at: float, room: int) -> float | None:
        """When what counts, too much at `at`, is down to `room` if nothing else is admitted (epoch seconds).

        None if it never is: `room` is negative.
        """
        balance = self.balance(at)
        left = balance.used + balance.held
        for entry in self._entries:
            if not is_over(entry.at, at) and not is_ahead(entry.at, at):
                left -= entry.amount
                if left <= room:
                    return entry.at + MINUTE_SECONDS
        return None

    def _over_at(self, at: float) -> Iterator[_Entry]:
        return takewhile(lambda entry: is_over(entry.at, at), self._entries)

    def _ahead_of(self, at: float) -> Iterator[_Entry]:
        return takewhile(lambda entry: is_ahead(entry.at, at), reversed(self._entries))

    def _drop(self, entry: _Entry) -> None:
        if entry.open:
            self.held -= entry.amount
            del self._open[entry.request_id]
        else:
            self.used -= entry.amount

    def _insert(self, entry: _Entry) -> None:
        # Requests come in order but for a few: a late charge, a request that waited for something else.
        place = len(self._entries)
        while place and self._entries[place - 1].at > entry.at:
            place -= 1
        self._entries.insert(place, entry)


Book = Tally | Sliding


def is_over(admitted_at: float, at: float) -> bool:
    """Whether what was admitted at `admitted_at` no longer counts in the minute that ends at `at`."""
    return admitted_at + MINUTE_SECONDS <= at


def is_ahead(admitted_at: float, at: float) -> bool:
    """Whether `admitted_at` is so long after `at` that the clock must have been set back in between."""
    return admitted_at > at + MINUTE_SECONDS
