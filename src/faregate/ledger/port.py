"""The port of the ledger: what the gateway may ask of it, whichever engine answers.

A hold is taken on every counter that a request touches, in one atomic step, before the request goes
upstream; settling replaces it by the real amounts. Amounts are integers: nano-dollars, tokens, requests.
Times are seconds since the epoch, passed in by the caller.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import msgspec

from faregate.policy.model import Meter, Scope, Window
from faregate.policy.rulebook import Shape
from faregate.records import Facts, UsageRecord


class Counter(NamedTuple):
    """One meter in one window for one scope, optionally for a model pattern.

    `starts` and `ends` bound a calendar window (seconds since the epoch); both are 0 where the calendar has no
    say: `total`, the sliding `minute`, and `concurrent`, whose `window` is None.
    """

    scope: Scope
    scope_id: str
    meter: Meter
    window: Window | None
    models: tuple[str, ...] = ()
    starts: int = 0
    ends: int = 0


class Claim(NamedTuple):
    """What a request asks of one counter: `fixed` plus `per_output_token` for each token of its cap.

    `limit` None counts without refusing. With `enforce` False a claim that does not fit is reported, not refused.
    """

    counter: Counter
    fixed: int
    per_output_token: int = 0
    limit: int | None = None
    enforce: bool = True


class Held(msgspec.Struct, frozen=True, gc=False):
    """The hold is in place and pays for `cap` output tokens. `exceeded` are the unenforced limits it broke."""

    cap: int
    exceeded: tuple[Counter, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing was held. `frees_at` is when a sliding window lets `needed` in (epoch seconds), if that is known."""

    counter: Counter
    used: int
    held: int
    limit: int
    needed: int
    frees_at: float | None = None


@dataclass(frozen=True, slots=True)
class Balance:
    """The state of a counter at one instant."""

    used: int = 0
    held: int = 0


@dataclass(slots=True)
class Hold:
    """A live reservation. `amounts` are what it keeps on each counter; `generation_id` is OpenRouter's, once known."""

    facts: Facts
    node: str
    expires_at: float
    cap: int
    amounts: dict[Counter, int] = field(default_factory=dict)
    generation_id: str | None = None
    parked: bool = False


class Settled(msgspec.Struct, frozen=True, gc=False):
    """The hold became a charge and the record was emitted, in the `era` of the ledger (see `UsageRecord.era`)."""

    era: int = 0


class AlreadySettled:
    """This request id was charged before: nothing changed."""


class Ledger(Protocol):
    """Reservations and charges, exact under any number of simultaneous calls.

    Every method raises `LedgerAway` while the books cannot be kept. What the call would have done may then have
    happened or not; each can be repeated, and happens once.
    """

    @property
    def shapes(self) -> Iterable[Shape]:
        """The shapes of counters that other nodes have taught this ledger: requests are held and charged on them too.

        The same object until it changes.
        """
        ...

    async def learn(self, shapes: Iterable[Shape]) -> None:
        """Have the counters of `shapes` from now on. They start from what was spent before in their windows."""
        ...

    async def reserve(
        self,
        facts: Facts,
        *,
        node: str,
        lease: float,
        claims: Sequence[Claim],
        cap_wanted: int,
        cap_min: int,
        now: float,
    ) -> Held | Refused:
        """Hold `claims`, all or nothing, with the largest output cap that fits. Idempotent by request id.

        If `fixed + cap_wanted * per_output_token` fits on every counter the cap is `cap_wanted`. Where it does
        not, the cap is what half of what is left pays for, but at least `cap_min` if that fits in all that is
        left; else the request is refused by the first claim that does not fit. The hold's facts learn the cap that
        was granted. A live hold answers a second call with the same `Held`.

        Where the same is claimed again and again, with other amounts, `ledger.forms.Claims` cost least.

        Sliding windows are judged at `facts.admitted_at`, leases begin at `now`. A counter may be claimed more than
        once, by several limits, if the claims ask the same of it: it is held once.

        Raises `Released` when the request id was released or settled before, ValueError on a negative amount.
        """
        ...

    async def note(self, request_id: str, generation_id: str) -> None:
        """Let the hold learn OpenRouter's id, before the first byte is relayed. Unknown ids are ignored."""
        ...

    async def park(self, request_id: str) -> None:
        """The request has ended and its cost is not known yet: parallel slots go back, the rest stays held."""
        ...

    async def settle(
        self, request_id: str, charges: Sequence[tuple[Counter, int]], record: UsageRecord
    ) -> Settled | AlreadySettled:
        """Replace the hold by `charges`, and emit `record`, in one step, once per request id.

        Also charges when the hold is gone (expired, lost, released): what was spent was spent. Counters in
        `charges` that the hold did not touch are charged too. A slot cannot be spent: charges on `concurrent`
        count nothing. Counters of shapes that the ledger has not learned yet are left out: they will start from the
        records, with this one. Many `charges` on the same counters cost least as `ledger.forms.Charges`.

        Raises ValueError on a negative amount: a charge never gives anything back. Raises `ShapesChanged` when
        `charges` were chosen by other `shapes` than the ledger has now; nothing has changed then.
        """
        ...

    async def release(self, request_id: str, now: float) -> None:
        """Nothing was spent: drop the hold, and leave a tombstone so that a late `reserve` cannot take hold.

        What was settled stays settled.
        """
        ...

    async def renew(self, node: str, lease: float, now: float) -> None:
        """Keep all holds of `node` alive until `now + lease`, also those that have expired."""
        ...

    def lapsed(self, request_id: str) -> bool:
        """Whether the lease of this node's hold ran out meanwhile: another node may have settled the request."""
        ...

    async def expired(self, now: float, limit: int) -> list[Hold]:
        """Holds whose node stopped renewing, for the reconciler, oldest first. They hold until settled or released."""
        ...

    async def adopt(self, node: str, lease: float, now: float, limit: int) -> list[Hold]:
        """Like `expired`, but what is returned belongs to `node` from now on, and to nobody else."""
        ...

    async def peek(self, counters: Sequence[Counter], now: float) -> list[Balance]:
        """The balances of `counters`, in the same order, at one instant."""
        ...


class LedgerAway(Exception):
    """The books cannot be kept at the moment. The message is a sentence that says why, for administrators."""


class ShapesChanged(Exception):
    """The ledger counts by other shapes now than those that the charges were chosen by: choose them again."""


class Released(Exception):
    """This request id is over, released or settled; it cannot be held again."""
