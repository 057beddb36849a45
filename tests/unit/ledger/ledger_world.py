"""What the ledger's tests are made of: counters, requests and the records that came before."""

from collections.abc import Iterable, Sequence
from typing import Any

from faregate.ledger.port import Claim, Counter, Held, Ledger, Refused
from faregate.ledger.seeds import Seed
from faregate.policy.model import Meter, Scope, Window
from faregate.policy.rulebook import Shape
from faregate.records import Facts, Source, Status, UsageRecord

NOON = 1_790_000_000 // 3600 * 3600.0
"""The start of an hour, in epoch seconds."""

NODE = "node-1"
LEASE = 15.0


def counter(
    meter: Meter = Meter.USD,
    window: Window | None = Window.HOUR,
    *,
    scope: Scope = Scope.USER,
    scope_id: str = "ada",
    at: float = NOON,
) -> Counter:
    """The counter whose window holds `at`; hours and days are those of UTC."""
    length = {Window.HOUR: 3600, Window.DAY: 86_400}.get(window, 0) if window else 0
    starts = int(at) // length * length if length else 0
    return Counter(scope, scope_id, meter, window, (), starts, starts + length)


def facts(request_id: str, at: float = NOON, user_id: str = "ada") -> Facts:
    return Facts(
        request_id=request_id,
        admitted_at=at,
        connection="webui",
        user_id=user_id,
        email=None,
        groups=(),
        policy_id="default",
        model="openai/gpt-5",
    )


def record(request_id: str, at: float = NOON, user_id: str = "ada") -> UsageRecord:
    return UsageRecord(facts(request_id, at, user_id), Status.COMPLETED, Source.USAGE)


async def learn(ledger: Ledger, *counters: Counter) -> None:
    await ledger.learn([Shape(on.scope, on.meter, on.window, on.models) for on in counters])


async def ask(
    ledger: Ledger,
    request_id: str,
    claims: Sequence[Claim],
    *,
    wanted: int = 0,
    least: int = 0,
    at: float = NOON,
    node: str = NODE,
) -> Held | Refused:
    return await ledger.reserve(
        facts(request_id, at), node=node, lease=LEASE, claims=claims, cap_wanted=wanted, cap_min=least, now=at
    )


class SpentBefore:
    """A baseline that is told what records charged."""

    def __init__(self) -> None:
        self.charged: list[tuple[Counter, float, int]] = []

    def used(self, counter: Counter) -> int:
        return sum(amount for charged, _, amount in self.charged if charged == counter)

    def recent(self, counter: Counter, since: float) -> list[tuple[float, int]]:
        return [(at, amount) for charged, at, amount in self.charged if charged == counter and at > since]

    def counters(self) -> list[Counter]:
        return list(dict.fromkeys(on for on, _, _ in self.charged))


class RecordsOf:
    """What a shared ledger's counters start from, where a baseline knows it. Each request is charged in this era."""

    def __init__(self, baseline: Any) -> None:
        self._baseline = baseline
        self.era = 0

    async def next_era(self, above: int) -> int:
        self.era = max(self.era, above) + 1
        return self.era

    async def charged(self, shapes: Iterable[Shape], era: int, now: float) -> list[Seed]:
        assert era <= self.era
        wanted = set(shapes)
        found: list[Seed] = []
        for counter in self._baseline.counters():
            if Shape(counter.scope, counter.meter, counter.window, counter.models) not in wanted:
                continue
            if counter.window is Window.MINUTE:
                entries = enumerate(self._baseline.recent(counter, now - 60))
                found += [Seed(counter, amount, f"before-{n}", at) for n, (at, amount) in entries]
            elif counter.window is not None:
                found.append(Seed(counter, self._baseline.used(counter)))
        return found
