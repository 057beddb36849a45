"""The live holds of this node, in its memory, and how a hold is written in Redis.

The node brings them back should Redis lose them.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from faregate.ledger.fitting import need
from faregate.ledger.port import Claim, Counter, Hold
from faregate.ledger.redis.names import counter_of, known_as, micros
from faregate.records import Facts, altered

_encoder = msgspec.json.Encoder()
_facts = msgspec.json.Decoder(Facts)


class KeptHold(msgspec.Struct, gc=False):
    """One live hold: less than a `Hold`, as one is made for each request and hardly ever looked at.

    `exceeded` are names of counters as Redis told them.
    """

    facts: Facts
    node: str
    cap: int
    claims: Sequence[Claim]
    exceeded: bytes = b""
    generation_id: str | None = None
    parked: bool = False

    def fields(self) -> list[bytes]:
        """What the hold is, beside its node, its moment of admission and what it keeps on counters."""
        parts = [b"f", encode_facts(self.facts), b"c", b"%d" % self.cap]
        if self.generation_id is not None:
            parts += (b"g", self.generation_id.encode())
        if self.parked:
            parts += (b"p", b"1")
        if self.exceeded:
            parts += (b"x", self.exceeded)
        return parts

    def amounts(self) -> dict[Counter, int]:
        """What it keeps on each counter: parallel slots no more, once the request is over."""
        return {
            claim.counter: need(claim, self.cap)
            for claim in self.claims
            if not self.parked or claim.counter.window is not None
        }


class NodeHolds:
    """All live holds of this node, by request id."""

    def __init__(self) -> None:
        self._kept: dict[str, KeptHold] = {}
        self._lapsed: set[str] = set()

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._kept

    def get(self, request_id: str) -> KeptHold | None:
        """The hold of that request, if it is here."""
        return self._kept.get(request_id)

    def add(self, kept: KeptHold) -> None:
        """Keep a hold, unless there is one for its request."""
        self._kept.setdefault(kept.facts.request_id, kept)

    def take_over(self, hold: Hold) -> None:
        """Keep a hold that another node took."""
        claims = [Claim(counter, amount) for counter, amount in hold.amounts.items()]
        self._kept[hold.facts.request_id] = KeptHold(
            hold.facts, hold.node, hold.cap, claims, b"", hold.generation_id, parked=hold.parked
        )

    def forget(self, request_id: str) -> None:
        """That request is over."""
        self._kept.pop(request_id, None)
        self._lapsed.discard(request_id)

    def lapse(self) -> None:
        """The lease of all of them ran out."""
        self._lapsed.update(self._kept)

    def has_lapsed(self, request_id: str) -> bool:
        """Whether its lease ran out while it was here."""
        return request_id in self._lapsed

    def brought(self, lease: bytes, now: bytes) -> list[list[Any]]:
        """For each, what Redis is told to take it on again: see `lua/enter.lua`."""
        return [_entering(kept, lease, now) for kept in self._kept.values()]


def _entering(kept: KeptHold, lease: bytes, now: bytes) -> list[Any]:
    facts, fields = kept.facts, kept.fields()
    arguments: list[Any] = [facts.request_id, kept.node, lease, micros(facts.admitted_at), now, len(fields), *fields]
    for counter, amount in kept.amounts().items():
        arguments += (*known_as(counter), amount)
    return arguments


def encode_facts(facts: Facts) -> bytes:
    """The facts of a hold as they are kept."""
    return _encoder.encode(facts)


def hold_of(flat: Iterable[bytes], expires_at: float) -> Hold:
    """The hold of a hash as HGETALL gives it, alive until `expires_at` (epoch seconds)."""
    parts = iter(flat)
    fields = dict(zip(parts, parts, strict=True))
    cap = int(fields[b"c"])
    generation_id = fields.get(b"g")
    return Hold(
        facts=altered(_facts.decode(fields[b"f"]), cap=cap),
        node=fields[b"n"].decode(),
        expires_at=expires_at,
        cap=cap,
        amounts={counter_of(name): int(amount) for name, amount in fields.items() if len(name) > 1},
        generation_id=None if generation_id is None else generation_id.decode(),
        parked=b"p" in fields,
    )
