"""The names of counters and shapes in Redis, the keys of a deployment, and moments as they are written there."""

import math
from functools import lru_cache
from typing import NamedTuple

import msgspec

from faregate.ledger.port import Counter
from faregate.policy.model import Window
from faregate.policy.rulebook import Shape

KEPT_AFTER_END = 3600
"""Seconds that a calendar counter outlives its window, for late charges and late readers."""

MOST = 2**53 - 1
"""The largest amount that Lua counts exactly; of nano-dollars that is nine million dollars."""

_KINDS = {None: "s", Window.MINUTE: "m", Window.TOTAL: "t"}
_encoder = msgspec.json.Encoder()
_packer = msgspec.msgpack.Encoder()
_counters = msgspec.json.Decoder(Counter)
_shapes = msgspec.json.Decoder(Shape)


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


class Known(NamedTuple):
    """A counter as Redis knows it: its name, and when it is gone (milliseconds since the epoch; empty if never)."""

    name: str
    gone: str


@lru_cache(maxsize=65_536)
def known_as(counter: Counter) -> Known:
    """What Redis knows `counter` as. The first letter of its name says how it counts (see `lua/common.lua`)."""
    gone = str((counter.ends + KEPT_AFTER_END) * 1000) if counter.ends else ""
    return Known(_KINDS.get(counter.window, "c") + _encoder.encode(counter).decode(), gone)


def name_of(counter: Counter) -> bytes:
    """The name of `counter` alone, as keys and replies have it."""
    return known_as(counter).name.encode()


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


def forgotten_at(counter: Counter) -> float:
    """When nothing reads `counter` any more, as its window is long over (epoch seconds)."""
    return counter.ends + KEPT_AFTER_END if counter.ends else math.inf


def ticks(seconds: float) -> int:
    """A moment or a time in microseconds."""
    return round(seconds * 1_000_000)


def micros(seconds: float) -> bytes:
    """A moment or a time in microseconds, as text."""
    return b"%d" % ticks(seconds)


def seconds(text: bytes) -> float:
    """The moment that Redis wrote in microseconds, in seconds."""
    return int(text) / 1_000_000


def packed_list(parts: list[str | int | bool]) -> bytes:
    """Parts of a call as one, for `cmsgpack` in Redis: many arguments cost both sides more than the work itself."""
    return _packer.encode(parts)


def counters_of(names: bytes) -> tuple[Counter, ...]:
    """The counters of several names, a line each."""
    return tuple(counter_of(name) for name in names.split(b"\n")) if names else ()
