"""The names of counters, shapes and holds in Redis, and what stands there under them."""

from collections.abc import Iterable, Mapping
from functools import lru_cache

import msgspec

from faregate.ledger.port import Counter, Hold
from faregate.policy.model import Window
from faregate.policy.rulebook import Shape
from faregate.records import Facts, altered

KEPT_AFTER_END = 3600
"""Seconds that a calendar counter outlives its window, for late charges and late readers."""

_KINDS = {None: b"s", Window.MINUTE: b"m", Window.TOTAL: b"t"}
_encoder = msgspec.json.Encoder()
_counters = msgspec.json.Decoder(Counter)
_shapes = msgspec.json.Decoder(Shape)
_facts = msgspec.json.Decoder(Facts)


class Keys:
    """The keys of one deployment. All begin with one hash tag: they are in one slot of a cluster."""

    def __init__(self, prefix: str) -> None:
        self.tag = f"{{{prefix}}}:".encode()
        self.state = self.tag + b"state"
        self.server = self.tag + b"server"
        self.shapes = self.tag + b"shapes"
        self.lock = self.tag + b"lock"
        self.nodes = self.tag + b"nodes"
        self.grace = self.tag + b"grace"
        self.outboxes = self.tag + b"outbox:"
        self.channel = self.tag + b"news"

    def outbox(self, node: str) -> bytes:
        """The stream of what `node` has not written to the database yet."""
        return self.outboxes + node.encode()

    def namespace(self, epoch: int) -> bytes:
        """Where the counters and holds of an epoch are."""
        return self.tag + b"%d:" % epoch


@lru_cache(maxsize=65_536)
def name_of(counter: Counter) -> bytes:
    """The name of `counter`; its first letter says how it counts (see `lua/common.lua`)."""
    return _KINDS.get(counter.window, b"c") + _encoder.encode(counter)


def counter_of(name: bytes) -> Counter:
    """The counter of that name."""
    return _counters.decode(name[1:])


@lru_cache(maxsize=65_536)
def shape_of(counter: Counter) -> Shape:
    """What `counter` is one of."""
    return Shape(counter.scope, counter.meter, counter.window, counter.models)


def shape_name(shape: Shape) -> bytes:
    """The name of `shape`."""
    return _encoder.encode(shape)


def shape_named(name: bytes) -> Shape:
    """The shape of that name."""
    return _shapes.decode(name)


def lifetime(counter: Counter, now: float) -> bytes:
    """Milliseconds from `now` (epoch seconds) that the counter is kept; empty where it does not end by the calendar."""
    return b"%d" % max(1, round((counter.ends - now + KEPT_AFTER_END) * 1000)) if counter.ends else b""


def is_forgotten(counter: Counter, now: float) -> bool:
    """Whether nothing reads `counter` any more: its window is long over."""
    return 0 < counter.ends <= now - KEPT_AFTER_END


def micros(seconds: float) -> bytes:
    """A moment or a time in microseconds."""
    return b"%d" % round(seconds * 1_000_000)


def seconds(text: bytes) -> float:
    """The moment that Redis wrote in microseconds, in seconds."""
    return int(text) / 1_000_000


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


def fields_of(hold: Hold, exceeded: Iterable[Counter]) -> Mapping[bytes, bytes]:
    """What a hold is, beside its node, its moment of admission and what it keeps on counters: `hold_of` reads it."""
    fields = {b"f": encode_facts(hold.facts), b"c": b"%d" % hold.cap}
    if hold.generation_id is not None:
        fields[b"g"] = hold.generation_id.encode()
    if hold.parked:
        fields[b"p"] = b"1"
    if broken := names_of(exceeded):
        fields[b"x"] = broken
    return fields


def names_of(counters: Iterable[Counter]) -> bytes:
    """Several names as one."""
    return b"\n".join(name_of(counter) for counter in counters)


def counters_of(names: bytes) -> tuple[Counter, ...]:
    """The counters of several names."""
    return tuple(counter_of(name) for name in names.split(b"\n")) if names else ()
