"""What was spent in the live windows: the sums that a counter starts from, whenever its limit is added.

The records are the truth. This is their sum by (person, groups, models), so that a limit that appears in
mid-window counts what was already spent in that window, whatever the limit is about.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from faregate.ledger.books import is_ahead, is_over
from faregate.ledger.forms import ChargeLine, Charges, Form
from faregate.ledger.port import Counter
from faregate.policy.model import Meter, Scope, Window
from faregate.policy.patterns import limit_applies
from faregate.policy.windows import UNBOUNDED, Calendar
from faregate.records import UsageRecord
from faregate.store.usage import ChargedRow, SpendRow

SLIDING_SECONDS = 60.0
"""The length of the sliding `minute`."""

MOST_REMEMBERED = 16_384
"""People, each with models, whose forms of charges are remembered."""

WINDOWS_KEPT = 4
"""The windows of each kind that are known: the last ones in which the clock was."""


class Amounts(NamedTuple):
    """What was spent: requests, tokens, nano-dollars."""

    requests: int = 0
    tokens: int = 0
    nano: int = 0

    def of(self, meter: Meter) -> int:
        """The part that `meter` counts. Parallel requests are holds, never spending: 0."""
        match meter:
            case Meter.REQUESTS:
                return self.requests
            case Meter.TOKENS:
                return self.tokens
            case Meter.USD:
                return self.nano
            case Meter.CONCURRENT:
                return 0

    def plus(self, other: "Amounts") -> "Amounts":
        """Both together."""
        return Amounts(self.requests + other.requests, self.tokens + other.tokens, self.nano + other.nano)


_SPENT = (Meter.REQUESTS, Meter.TOKENS, Meter.USD)
"""What the parts of `Amounts` are counted by, in their order."""


class Payer(NamedTuple):
    """Whose counters a record is on: a person, in these groups, with these models."""

    user_id: str
    groups: tuple[str, ...]
    models: tuple[str, ...]

    def on(self, counter: Counter) -> bool:
        """Whether `counter` adds up what this payer spends."""
        match counter.scope:
            case Scope.USER:
                concerned = counter.scope_id == self.user_id
            case Scope.GROUP:
                concerned = counter.scope_id in self.groups
            case Scope.EVERYONE:
                concerned = True
        return concerned and limit_applies(counter.models, self.models)


def amounts_of(record: UsageRecord) -> Amounts:
    """What `record` charges."""
    return Amounts(record.requests, record.total_tokens, record.cost_nano)


class _Known(NamedTuple):
    counters: tuple[Counter, ...]
    form: Form[ChargeLine]


class Charging:
    """What records charge. Which counters by which amounts is remembered for as long as the counters are the same."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, tuple[str, ...]], _Known] = {}

    def charges(self, record: UsageRecord, models: tuple[str, ...], counters: tuple[Counter, ...]) -> Charges:
        """What `record` charges on each of `counters`, those of its `models`: requests, tokens or nano-dollars.

        Slots are never charged.
        """
        key = record.facts.user_id, models
        known = self._known.get(key)
        if known is None or known.counters is not counters:
            if len(self._known) >= MOST_REMEMBERED:
                self._known.clear()
            known = self._known[key] = _Known(counters, charge_form(counters))
        return Charges(known.form, amounts_of(record))


def charge_form(counters: Iterable[Counter]) -> Form[ChargeLine]:
    """The form of charges on `counters`, to be filled in with `Amounts`."""
    return Form(ChargeLine(counter, _SPENT.index(counter.meter)) for counter in counters if counter.meter in _SPENT)


class SpendSource(Protocol):
    """Where the sums come from at start: the store."""

    async def spend(self, since: float, until: float | None = None) -> list[SpendRow]:
        """What was charged to requests admitted since then, up to but without `until` (epoch seconds), summed."""
        ...

    async def recent(self, since: float) -> list[ChargedRow]:
        """Every charge to requests admitted since then (epoch seconds), oldest first."""
        ...


class NoSpend:
    """Where a ledger is shared nobody adds up: its counters start from the database (`StoredRecords`)."""

    def add(self, record: UsageRecord, now: float) -> None:
        """Nothing to count."""


class Spend:
    """The sums of the live windows, and the records of the last minute. A `Baseline` of the ledger.

    Windows roll by the clock: one that it comes to is empty, and the last few that it was in are kept, for late
    records, and for a clock that was ahead and is set right: it is then in an earlier window again, and nobody may
    spend that anew. A record of a window that is not kept is ignored. So memory follows the number of people, not of
    requests.
    """

    def __init__(self, calendar: Calendar, now: float) -> None:
        self._calendar = calendar
        self._windows = {
            window: _Kept(calendar, window, now) for window in (Window.HOUR, Window.DAY, Window.WEEK, Window.MONTH)
        }
        self._total = _Sums(*UNBOUNDED)
        self._recent = _Recent()

    @classmethod
    async def load(cls, store: SpendSource, calendar: Calendar, now: float) -> "Spend":
        """The sums of what `store` holds at `now` (epoch seconds). Raises `StoreUnavailable`."""
        spend = cls(calendar, now)
        current = [(kept, kept.visit(now).ends) for kept in spend._windows.values()]
        for charged in await store.recent(now - SLIDING_SECONDS):
            payer = Payer(charged.user_id, charged.groups, charged.models)
            amounts = Amounts(charged.requests, charged.tokens, charged.nano)
            spend._recent.add(charged.admitted_at, payer, amounts, now)
            # Admitted by a clock that was ahead: its windows will come, and are not empty then.
            for kept, ends in current:
                if charged.admitted_at >= ends:
                    kept.visit(charged.admitted_at).add(payer, amounts)
        for sums in (*(kept.visit(now) for kept in spend._windows.values()), spend._total):
            for row in await store.spend(sums.starts, sums.ends or None):
                payer = Payer(row.user_id, row.groups, row.models)
                sums.add(payer, Amounts(row.requests, row.tokens, row.nano))
        return spend

    def add(self, record: UsageRecord, now: float) -> None:
        """Count a record that was settled at `now` (epoch seconds)."""
        at, payer, amounts = record.facts.admitted_at, _payer(record), amounts_of(record)
        for kept in self._windows.values():
            kept.visit(now)
            if (sums := kept.holding(at)) is not None:
                sums.add(payer, amounts)
        self._total.add(payer, amounts)
        self._recent.add(at, payer, amounts, now)

    def used(self, counter: Counter) -> int:
        """What records have charged to a calendar or `total` counter; 0 for a window that is not kept."""
        if counter.window is Window.TOTAL:
            return self._total.used(counter)
        kept = None if counter.window is None else self._windows.get(counter.window)
        sums = None if kept is None else kept.holding(counter.starts)
        return 0 if sums is None else sums.used(counter)

    def recent(self, counter: Counter, since: float) -> list[tuple[float, int]]:
        """`(admitted_at, amount)` of the records on a sliding counter admitted after `since`, oldest first."""
        return sorted(self._recent.on(counter, since))


class _Sums:
    """One window: what each payer spent in it."""

    __slots__ = ("_users", "ends", "starts")

    def __init__(self, starts: int, ends: int) -> None:
        self.starts = starts
        self.ends = ends
        # By person first: the counters that are met for the first time are mostly about one.
        self._users: dict[str, dict[Payer, Amounts]] = {}

    def add(self, payer: Payer, amounts: Amounts) -> None:
        payers = self._users.setdefault(payer.user_id, {})
        payers[payer] = payers.get(payer, Amounts()).plus(amounts)

    def used(self, counter: Counter) -> int:
        if counter.scope is Scope.USER:
            groups: Iterable[dict[Payer, Amounts]] = (self._users.get(counter.scope_id, {}),)
        else:
            groups = self._users.values()
        return sum(
            amounts.of(counter.meter) for payers in groups for payer, amounts in payers.items() if payer.on(counter)
        )


class _Kept:
    """The windows of one kind in which the clock was lately, the latest visit last."""

    __slots__ = ("_calendar", "_latest", "_sums", "_window")

    def __init__(self, calendar: Calendar, window: Window, now: float) -> None:
        self._calendar = calendar
        self._window = window
        self._sums: OrderedDict[int, _Sums] = OrderedDict()
        self._latest = self._open(now)

    def visit(self, now: float) -> _Sums:
        """The window that the clock is in at `now`; another one may be dropped for it."""
        if not self._latest.starts <= now < self._latest.ends:
            self._latest = self._open(now)
        return self._latest

    def holding(self, at: float) -> _Sums | None:
        """The window that `at` lies in, if it is kept."""
        return next((sums for sums in reversed(self._sums.values()) if sums.starts <= at < sums.ends), None)

    def _open(self, at: float) -> _Sums:
        # By visits and not by age: however far the clock jumps, it is in few windows before it is set right.
        starts, ends = self._calendar.bounds(self._window, at)
        sums = self._sums.setdefault(starts, _Sums(starts, ends))
        self._sums.move_to_end(starts)
        if len(self._sums) > WINDOWS_KEPT:
            self._sums.popitem(last=False)
        return sums


class _Charge(NamedTuple):
    at: float
    payer: Payer
    amounts: Amounts


class _Recent:
    """The records of the last minute, in the order of their settling."""

    __slots__ = ("_all", "_users")

    def __init__(self) -> None:
        self._all: deque[_Charge] = deque()
        self._users: dict[str, deque[_Charge]] = {}

    def add(self, at: float, payer: Payer, amounts: Amounts, now: float) -> None:
        self._forget(now)
        if is_over(at, now) or is_ahead(at, now):
            return
        charge = _Charge(at, payer, amounts)
        self._all.append(charge)
        self._users.setdefault(payer.user_id, deque()).append(charge)

    def on(self, counter: Counter, since: float) -> Iterator[tuple[float, int]]:
        charges = self._users.get(counter.scope_id, deque()) if counter.scope is Scope.USER else self._all
        for charge in charges:
            if charge.at > since and charge.payer.on(counter):
                yield charge.at, charge.amounts.of(counter.meter)

    def _forget(self, now: float) -> None:
        # A younger one in front keeps an older one for a while: at most two more minutes' worth.
        while self._all and (is_over(self._all[0].at, now) or is_ahead(self._all[0].at, now)):
            user_id = self._all.popleft().payer.user_id
            charges = self._users[user_id]
            charges.popleft()
            if not charges:
                del self._users[user_id]


def _payer(record: UsageRecord) -> Payer:
    return Payer(record.facts.user_id, record.facts.groups, record.counted_models())
