"""One closed UTC day by our records and by OpenRouter's `/activity`, side by side. Pure: sums in, rows out.

What is compared, and by which names:

* A record is of the day on which it was admitted, in UTC. OpenRouter dates a request within moments of that, so one at
  midnight may be on the day before or after there: the differences of the two days are then each other's opposite.
* Ours are the final records that OpenRouter can know of; theirs what left the balance, with what providers billed
  directly under BYOK: our costs have both, too.
* A row is called by OpenRouter's model id. Our records have the name on the answer, which may be that id, its dated
  name, or one with a variant, and the other names that the price list had for it. Whichever of these names a model of
  that day, and no other, is taken; what fits none stands under its own name, as a difference.
* Providers are compared without regard to case. A record that does not know its provider (an estimate, mostly) counts
  for the only one that answered for its model that day, if there was one only.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal

from faregate.accounting.activity import DAYS, Activity
from faregate.records import PICO
from faregate.store.reconciliations import DayRow, DaySum

_Key = tuple[str, str]
_Sums = dict[_Key, tuple[int, Decimal]]
_NOTHING = (0, Decimal(0))


class NotClosed(Exception):
    """The day is not one that can be compared. The message is a sentence that says why, and what to do."""


def day_before(now: float) -> date:
    """The last completed UTC day at `now` (seconds since the epoch)."""
    return datetime.fromtimestamp(now, UTC).date() - timedelta(days=1)


def bounds(day: date) -> tuple[float, float]:
    """When `day` begins and ends in UTC (seconds since the epoch)."""
    begin = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return begin.timestamp(), (begin + timedelta(days=1)).timestamp()


def check_closed(day: date, now: float) -> None:
    """Return if OpenRouter tells of `day` at `now` (seconds since the epoch). Raises `NotClosed`."""
    last = day_before(now)
    if day > last:
        raise NotClosed(
            f"{day} has not ended yet in UTC, and OpenRouter tells of completed days only: "
            f"the last one is {last}; ask for that, or wait"
        )
    first = last - timedelta(days=DAYS - 1)
    if day < first:
        raise NotClosed(f"{day} is too long ago: OpenRouter tells of the last {DAYS} days only, now from {first} on")


def compare(ours: Sequence[DaySum], theirs: Sequence[Activity]) -> list[DayRow]:
    """A row for each model at each provider that either side knows, by name."""
    names = _Names(theirs)
    our_sums = _summed((names.of(one), one.requests, one.cost) for one in ours)
    their_sums = _summed((names.exact(one.model, one.provider), one.requests, one.cost) for one in theirs)
    return [
        DayRow(*key, *our_sums.get(key, _NOTHING), *their_sums.get(key, _NOTHING))
        for key in sorted(our_sums.keys() | their_sums.keys())
    ]


def total(rows: Iterable[DayRow]) -> DayRow:
    """All rows as one, without names."""
    sums = DayRow("", "", 0, Decimal(0), 0, Decimal(0))
    for row in rows:
        sums = DayRow(
            "",
            "",
            sums.our_requests + row.our_requests,
            sums.our_cost + row.our_cost,
            sums.their_requests + row.their_requests,
            sums.their_cost + row.their_cost,
        )
    return sums


def agree(rows: Sequence[DayRow], tolerance: Decimal) -> bool:
    """Whether neither a row nor the total differs by more than `tolerance` dollars."""
    return all(abs(row.difference) <= tolerance for row in (*rows, total(rows)))


class _Names:
    """What OpenRouter calls the models and providers of our records."""

    def __init__(self, theirs: Sequence[Activity]) -> None:
        self._models = {one.model: one.model for one in theirs}
        # `x` and `x:free` share a dated name: it means the plain one.
        plain_last = sorted(theirs, key=lambda one: ":" not in one.model)
        self._any = {one.permaslug: one.model for one in plain_last} | self._models
        self._providers: dict[str, dict[str, str]] = {}
        for one in sorted(theirs, key=lambda one: one.provider):
            self._providers.setdefault(one.model, {}).setdefault(one.provider.casefold(), one.provider)

    def of(self, ours: DaySum) -> _Key:
        model = self._model(ours)
        providers = self._providers.get(model, {})
        if not ours.provider and len(providers) == 1:
            return model, next(iter(providers.values()))
        return self.exact(model, ours.provider or "")

    def exact(self, model: str, provider: str) -> _Key:
        return model, self._providers.get(model, {}).get(provider.casefold(), provider)

    def _model(self, ours: DaySum) -> str:
        name = ours.served_model or ours.model
        plain = name.partition(":")[0]
        # Of a name that the price list did not have, the record's other names are those of all candidates.
        family = ours.models if name in ours.models else ()
        tries: tuple[tuple[Sequence[str], Mapping[str, str]], ...] = (
            ((name,), self._models),
            (family, self._models),
            ((name,), self._any),
            ((plain,), self._any),
            (ours.models, self._any),
        )
        for candidates, known in tries:
            found = {known[candidate] for candidate in candidates if candidate in known}
            if len(found) == 1:
                return found.pop()
        return name


def _summed(entries: Iterable[tuple[_Key, int, Decimal]]) -> _Sums:
    sums: _Sums = {}
    for key, requests, cost in entries:
        so_far, spent = sums.get(key, _NOTHING)
        sums[key] = so_far + requests, spent + cost
    # OpenRouter adds up in binary fractions: what is behind the twelfth place is noise.
    return {key: (count, cost.quantize(PICO, ROUND_HALF_EVEN)) for key, (count, cost) in sums.items()}
