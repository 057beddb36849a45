"""The ledger in a few lines: a list of requests, and sums over it. Slow, and plainly right."""

from dataclasses import dataclass, field

from faregate.ledger.port import Balance, Claim, Counter, Held, Refused
from faregate.policy.model import Window


@dataclass
class Request:
    at: float
    node: str = ""
    expires_at: float = 0.0
    answer: Held | None = None
    held: dict[Counter, int] = field(default_factory=dict)
    charged: dict[Counter, int] = field(default_factory=dict)
    generation_id: str | None = None
    parked: bool = False
    released: bool = False
    settled: bool = False
    ended_at: float = 0.0

    @property
    def live(self) -> bool:
        return self.answer is not None and not self.released and not self.settled


class Model:
    """What the engine must do, and at once the records that its counters start from."""

    def __init__(self) -> None:
        self.requests: dict[str, Request] = {}

    def used(self, counter: Counter) -> int:
        return sum(request.charged.get(counter, 0) for request in self.requests.values())

    def recent(self, counter: Counter, since: float) -> list[tuple[float, int]]:
        found = [(request.at, request.charged.get(counter, 0)) for request in self.requests.values()]
        return [(at, amount) for at, amount in found if at > since]

    def counters(self) -> list[Counter]:
        return list(dict.fromkeys(on for request in self.requests.values() for on in request.charged))

    def balance(self, counter: Counter, now: float) -> Balance:
        sliding = counter.window is Window.MINUTE
        counting = [r for r in self.requests.values() if not sliding or r.at + 60 > now]
        return Balance(
            sum(r.charged.get(counter, 0) for r in counting),
            sum(r.held.get(counter, 0) for r in counting if r.live),
        )

    def decide(self, claims: list[Claim], wanted: int, least: int, now: float) -> Held | Refused:
        caps = [wanted]
        for claim in claims:
            balance = self.balance(claim.counter, now)
            used, held = balance.used, balance.held
            asked = [claim.fixed + cap * claim.per_output_token for cap in range(wanted + 1)]
            if claim.limit is None or not claim.enforce or used + held + asked[wanted] <= claim.limit:
                continue
            left = claim.limit - used - held
            if asked[least] > left:
                frees_at = self.frees_at(claim, asked[least], now)
                return Refused(claim.counter, used, held, claim.limit, asked[least], frees_at)
            caps.append(max([least, *(cap for cap in range(wanted + 1) if asked[cap] <= left // 2)]))
        cap = min(caps)
        broken = [claim.counter for claim in claims if self.breaks(claim, cap, now)]
        return Held(cap, tuple(broken))

    def breaks(self, claim: Claim, cap: int, now: float) -> bool:
        balance = self.balance(claim.counter, now)
        total = balance.used + balance.held + claim.fixed + cap * claim.per_output_token
        return claim.limit is not None and total > claim.limit

    def frees_at(self, claim: Claim, needed: int, now: float) -> float | None:
        if claim.counter.window is not Window.MINUTE:
            return None
        for at in sorted(r.at + 60 for r in self.requests.values() if r.at + 60 > now):
            balance = self.balance(claim.counter, at)
            if balance.used + balance.held + needed <= (claim.limit or 0):
                return at
        return None
